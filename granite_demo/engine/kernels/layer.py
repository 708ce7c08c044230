"""Granite's decoder layer as a few large operations instead of some thirty small ones.

With the residual multiplier r, a layer is (``GraniteDecoderLayer``, and ``GraniteMoeHybridDecoderLayer`` without Mamba
and experts)::

    q, k, v = rotary(RMSNorm(x) Wqkv)      one product (rows: heads of q, of k, of v)
    x = x + r * attention(q, k, v) Wo      product, multiplier and sum in one operation
    x = x + r * (silu(g) * u) Wdown        where g, u = RMSNorm(x) Wgate_up

For one token, the operations are the kernels of ``matvec``, which read the weights at about the bandwidth of the memory
(docs/gpus.md has the figures). For more tokens, they are torch's products and small kernels. The weights of a product
are in one tensor, and the parameters of the model are views of it, so they take no additional memory.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from granite_demo.engine.decoder_layers import decoder_layers
from granite_demo.engine.kernels import causal_attention
from granite_demo.engine.kernels.weights import Products, join_weights, result_count
from granite_demo.loading.tensor_parallel import ALONE, Group

log = logging.getLogger(__name__)

MAX_ERROR = 0.03
"""The maximum relative error of 16-bit results."""


def fuse(model: Any, kernels: Any = None, requests: int = 1, group: Group = ALONE) -> None:
    """Replace the layers of ``model``. ``kernels`` is the module ``matvec``, or None to use only torch.

    ``requests`` is the maximum number of requests in one step of continuous batching. ``group`` has the processes that
    share each layer.
    """
    layers: Any = decoder_layers(model)
    if isinstance(layers[0], FusedLayer):
        return
    shared = _Shared(group)
    for index, layer in enumerate(layers):
        layers[index] = FusedLayer(layer, kernels, shared)
    if kernels:
        layer = layers[0]
        shared.pages = kernels.PagedAttention(requests, layer.heads, layer.kv_heads, layer.size, model.device)
        shared.sums = kernels.sums_of(group, model.config.hidden_size) if group.peer_access else None
    decoder = model.get_decoder()
    decoder.norm = FusedNorm(decoder.norm)
    if kernels and group.size == 1 and type(model.lm_head) is nn.Linear:
        model.lm_head = FusedHead(model.lm_head, kernels)


def has_paged_attention(model: Any) -> bool:
    """Whether the layers of ``model`` can attend to the cache of continuous batching without FlashAttention."""
    layer: Any = decoder_layers(model)[0]
    return isinstance(layer, FusedLayer) and layer.has_kernels


@torch.inference_mode()
def trial(model: Any, kernels: Any) -> str:
    """Compare the kernels for one token with torch on one layer. Return why they cannot be used, or "" if they can."""
    layer = FusedLayer(decoder_layers(model)[0], kernels, _Shared())
    like = layer.input_layernorm.weight
    draw = torch.Generator(like.device).manual_seed(0)

    def drawn(size: int) -> torch.Tensor:
        return torch.randn((1, size), generator=draw, device=like.device).to(like.dtype)

    x, cos, sin = drawn(len(like)), drawn(layer.size), drawn(layer.size)
    try:
        gated = layer.norm_gate_up(None, x)
        pairs = (
            (layer.norm_qkv(kernels, x, cos, sin), layer.norm_qkv(None, x, cos, sin)),
            (layer.norm_gate_up(kernels, x), gated),
            (layer.add_down(kernels, gated, x), layer.add_down(None, gated, x)),
        )
        errors = [float((ours.float() - theirs.float()).norm() / theirs.float().norm()) for ours, theirs in pairs]
    except Exception as error:
        log.warning("The fused layers are not used.", exc_info=error)
        return f"its kernels do not run here ({type(error).__name__})"
    wrong = [error for error in errors if not error < MAX_ERROR]  # also true for NaN
    return f"its kernels have an error of {wrong[0]:.0%} on this GPU" if wrong else ""


class _Shared:
    """The state that the layers of a model share."""

    def __init__(self, group: Group = ALONE) -> None:
        self.group = group

    lengths: torch.Tensor | None = None
    """The number of tokens in the cache of each request before this step, (n,) int32."""
    pages: Any = None
    sums: Any = None


class FusedNorm(nn.Module):
    """RMSNorm as one kernel."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize the last dimension of ``x``."""
        return _rms_norm(self, x)


class FusedHead(nn.Module):
    """The product of the last hidden state with the vocabulary weights."""

    def __init__(self, head: nn.Linear, kernels: Any) -> None:
        super().__init__()
        self.weight = head.weight
        self._weights = join_weights([head])
        self._kernels = kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convert (..., hidden) to (..., vocabulary)."""
        if x.numel() != x.shape[-1]:
            return F.linear(x, self.weight)
        logits: torch.Tensor = self._kernels.linear(x.reshape(1, -1), self._weights)
        return logits.view(*x.shape[:-1], -1)


class FusedLayer(nn.Module):
    """A replacement for a dense decoder layer of Granite that has its parameters under the same names."""

    def __init__(self, layer: Any, kernels: Any, shared: _Shared) -> None:
        super().__init__()
        self.self_attn = layer.self_attn
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm
        self.multiplier: float = layer.residual_multiplier
        attention = layer.self_attn
        self.size: int = attention.head_dim
        self.heads = result_count(attention.q_proj) // self.size
        self.kv_heads = result_count(attention.k_proj) // self.size
        self._qkv = Products(attention.q_proj, attention.k_proj, attention.v_proj)
        self._out = Products(attention.o_proj)
        if hasattr(layer, "shared_mlp"):  # granitemoehybrid has the weights of gate and up in one module
            self.shared_mlp = layer.shared_mlp
            self._gate_up, self._down = (
                Products(layer.shared_mlp.input_linear),
                Products(layer.shared_mlp.output_linear),
            )
        else:
            self.mlp = layer.mlp
            self._gate_up, self._down = Products(layer.mlp.gate_proj, layer.mlp.up_proj), Products(layer.mlp.down_proj)
        self._kernels, self._shared = kernels, shared
        self._last: int = attention.config.num_hidden_layers - 1

    @property
    def has_kernels(self) -> bool:
        """Whether the layer uses the kernels of ``matvec``."""
        return self._kernels is not None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """See ``forward`` of the layer that it replaces. Input and output have the shape (batch, n, hidden)."""
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        # If all rows have the same positions, the rotary tables have only one row.
        cos, sin = (table.expand(len(hidden_states), -1, -1).reshape(len(x), -1) for table in position_embeddings)
        kernels = self._kernels if len(x) == 1 else None
        qkv = self.norm_qkv(kernels, x, cos, sin).view(*hidden_states.shape[:2], -1, self.size)
        attended = self._attend(qkv, attention_mask, past_key_values, **kwargs).reshape(len(x), -1)
        x = self._add(kernels, attended, self._out, x)
        x = self.add_down(kernels, self.norm_gate_up(kernels, x), x)
        return x.view_as(hidden_states)

    def norm_qkv(self, kernels: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Return the queries, keys and values of n tokens, shape (n, all heads * size).

        ``kernels`` are those for one token, or None.
        """
        norm, rotated = self.input_layernorm, self.heads + self.kv_heads
        result: torch.Tensor
        if kernels:
            result = kernels.norm_qkv(x, norm.weight, norm.variance_epsilon, self._qkv.weights, cos, sin, rotated)
        else:
            turn = self._kernels.rotate if self._kernels else rotate
            result = turn(self._qkv(_rms_norm(norm, x)), cos, sin, rotated)
        return result

    def norm_gate_up(self, kernels: Any, x: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up of n tokens, shape (n, intermediate size)."""
        norm = self.post_attention_layernorm
        result: torch.Tensor
        if kernels:
            result = kernels.norm_gate_up(x, norm.weight, norm.variance_epsilon, self._gate_up.weights)
        else:
            result = (self._kernels.gate if self._kernels else gate)(self._gate_up(_rms_norm(norm, x)))
        return result

    def add_down(self, kernels: Any, gated: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return the output of the layer, shape (n, hidden)."""
        return self._add(kernels, gated, self._down, residual)

    def _add(self, kernels: Any, x: torch.Tensor, products: Products, residual: torch.Tensor) -> torch.Tensor:
        group = self._shared.group
        share = float(group.leads)  # only one process adds the residual to the sum
        result: torch.Tensor
        if kernels and self._shared.sums:
            result = kernels.linear_add(x, products.weights, residual, self.multiplier, share, self._shared.sums)
            return result
        if kernels:
            result = kernels.linear_add(x, products.weights, residual, self.multiplier, share)
        else:
            result = products.add(x, residual, self.multiplier, share)
        group.all_reduce(result)
        return result

    def _attend(
        self, qkv: torch.Tensor, mask: torch.Tensor | None, past_key_values: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Apply the attention of the model to (batch, n, all heads, size). Returns (batch, n, heads, size)."""
        if self._kernels and kwargs.get("block_table") is not None:
            return self._attend_to_pages(qkv, **kwargs)
        name = self.self_attn.config._attn_implementation
        own = self._kernels and (name == causal_attention.NAME or self._kernels.reads_prompts(qkv.device))
        if own and kwargs.get("write_index") is not None:
            return self._attend_to_prompts(qkv, **kwargs)
        parts = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        query, key, value = (part.transpose(1, 2) for part in parts)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.self_attn.layer_idx)
        attend: Any = ALL_ATTENTION_FUNCTIONS.get_interface(name, _no_attention)
        module, scaling = self.self_attn, self.self_attn.scaling
        attended: torch.Tensor = attend(module, query, key, value, mask, dropout=0.0, scaling=scaling, **kwargs)[0]
        return attended

    def _attend_to_pages(
        self, qkv: torch.Tensor, *, cache: Any, cu_seq_lens_k: Any, block_table: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        """Decode in continuous batching: one new token of each request attends to the pages of its cache."""
        shared, index, count = self._shared, self.self_attn.layer_idx, qkv.shape[1]
        allocator = cache.layer_to_allocator[index]
        if index == 0 or shared.lengths is None:
            ends = cu_seq_lens_k[allocator.layer_type].to(torch.int32)
            shared.lengths = ends[1 : count + 1] - ends[:count] - 1
        keys, values = allocator.get_cache_for_block_table(index)
        attended: torch.Tensor = shared.pages.attend(
            qkv.reshape(count, -1), keys, values, block_table[allocator.index], shared.lengths, self.self_attn.scaling
        )
        if index == self._last:
            shared.lengths = None  # its memory belongs to a CUDA graph
        return attended

    def _attend_to_prompts(
        self, qkv: torch.Tensor, *, cache: Any, cu_seq_lens_q: Any, cu_seq_lens_k: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Prefill in continuous batching: the tokens of prompts attend to the cache of their requests."""
        allocator = cache.layer_to_allocator[self.self_attn.layer_idx]
        write, read = (kwargs[name][allocator.index] for name in ("write_index", "read_index"))
        keys, values = allocator._kv_token_views[self.self_attn.layer_idx]
        rows = qkv[0].flatten(1)
        self._kernels.write_cache(rows, self.heads, keys, values, write)
        new = qkv[0].split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        where = (keys, values, read) if len(read) else (*new[1:], None)
        ends, scaling = cu_seq_lens_k[allocator.layer_type], self.self_attn.scaling
        attend: Any = self._kernels.attend_to_prompts
        result: torch.Tensor = attend(rows, self.heads, *where, cu_seq_lens_q, ends, scaling)
        return result


def _no_attention(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("Eager attention is not fused.")


def _rms_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def rotate(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotated: int) -> torch.Tensor:
    """Apply the rotary embedding to the first ``rotated`` heads of ``qkv``.

    ``qkv``: (n, heads * size). ``cos``, ``sin``: (n, size).
    """
    heads = qkv.view(len(qkv), -1, cos.shape[-1])
    low, high = heads[:, :rotated].chunk(2, dim=-1)
    turn = heads[:, :rotated] * cos[:, None] + torch.cat((-high, low), dim=-1) * sin[:, None]
    return torch.cat((turn, heads[:, rotated:]), dim=1).view_as(qkv)


def gate(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, shape (n, N). ``gate_up``: (n, 2 N), the gates first."""
    gates, ups = gate_up.chunk(2, dim=-1)
    return F.silu(gates) * ups
