"""Attention to the rows of one slot in a cache that all slots share, with the FlashAttention that is a part of torch.

The range of rows is in GPU memory (``cu_seq_lens_k``), so one recorded step can be used for all slots, and only filled
rows are read. If this attention is not possible, the runner uses torch's sdpa on a view of one slot.
"""

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ROW_ATTENTION = "granite_demo_rows"
"""The name of this attention in transformers."""
MAX_DIFFERENCE = 0.05
"""The maximum rounding difference from the exact result in 16 bits, for values about 1."""


def register() -> None:
    """Register ROW_ATTENTION in transformers. In calls without ``cu_seq_lens_k``, it is sdpa."""
    AttentionInterface.register(ROW_ATTENTION, attention)
    AttentionMaskInterface.register(ROW_ATTENTION, sdpa_mask)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int = 0,
    max_length_k: int = 0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function for transformers.

    ``query``: (1, heads, n, size). ``key``, ``value``: (rows, KV heads, size). Returns (1, n, heads, size).
    """
    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        output, nothing = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return output, nothing
    lengths = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
    return attend(query[0].transpose(0, 1), key, value, *lengths, scaling)[None], None


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cu_seq_lens_q: torch.Tensor,
    cu_seq_lens_k: torch.Tensor,
    max_length_q: int,
    max_length_k: int,
    scaling: float | None,
) -> torch.Tensor:
    """Return the causal attention of n queries, shape (n, heads, size), to the rows of one slot.

    The slot has the rows from ``cu_seq_lens_k[0]`` to ``cu_seq_lens_k[1]``, and the queries belong to the last n of
    them. For a single query, the work is split over ``max_length_k`` rows, so this should not be much larger than the
    number of rows.
    """
    if not query.is_cuda:
        return exact(query, keys, values, cu_seq_lens_k, scaling)
    output: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query,
        keys,
        values,
        cu_seq_lens_q,
        cu_seq_lens_k,
        max_length_q,
        max_length_k,
        0.0,  # dropout
        max_length_q > 1,  # causal
        False,
        scale=scaling,
    )[0]
    return output


def exact(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, cu_seq_lens_k: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Compute the same as ``attend`` in float32."""
    first, end = cu_seq_lens_k.tolist()
    count, groups = query.shape[0], query.shape[1] // keys.shape[1]
    q = query.float().transpose(0, 1)
    k, v = (rows[first:end].float().transpose(0, 1).repeat_interleave(groups, dim=0) for rows in (keys, values))
    hidden = torch.ones(count, end - first, dtype=torch.bool, device=query.device).triu(end - first - count + 1)
    output = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=~hidden, scale=scaling)
    return output.transpose(0, 1).to(query.dtype)


def rows_problem(config: Any, device: torch.device, dtype: torch.dtype) -> str:
    """Return why this attention cannot be used for a model, or "". On a suitable GPU, this runs it for a test."""
    if device.type != "cuda":
        return "it needs a CUDA GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it does not compute in {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or newer"
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    try:
        errors = [_error(heads, kv_heads, size, count, device, dtype) for count in (1, 5)]
    except (RuntimeError, AttributeError, TypeError) as failure:
        return f"this torch does not offer it ({(str(failure) or type(failure).__name__).splitlines()[0]})"
    wrong = [error for error in errors if not error < MAX_DIFFERENCE]  # also true for NaN
    return f"its results have an error of {wrong[0]:.2f} on this GPU" if wrong else ""


def _error(heads: int, kv_heads: int, size: int, count: int, device: torch.device, dtype: torch.dtype) -> float:
    """Return the largest difference from ``exact`` for ``count`` queries in the middle of the rows."""
    random = torch.Generator(device).manual_seed(0)

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=device, dtype=torch.float32).to(dtype)

    query, keys, values = rows(count, heads, size), rows(700, kv_heads, size), rows(700, kv_heads, size)
    cu_seq_lens_q = torch.tensor([0, count], dtype=torch.int32, device=device)
    cu_seq_lens_k = torch.tensor([16, 16 + 300 + count], dtype=torch.int32, device=device)
    ours = attend(query, keys, values, cu_seq_lens_q, cu_seq_lens_k, count, 600, size**-0.5)
    return float((ours - exact(query, keys, values, cu_seq_lens_k, size**-0.5)).abs().max())
