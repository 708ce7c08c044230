"""Float32 arithmetic with 16-bit weights, for CPUs without fast 16-bit arithmetic.

On such a CPU, a product of a few rows (a token of an answer) takes the time to read the weights, so 16 bits are twice
as fast. A product of many rows (a prompt) takes several times as long as in float32. Therefore prompts are computed in
float32, and the weights stay in 16 bits. Attention of a single token over a long text is also faster in float32.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

FEW_ROWS = 4
"""Up to this number of rows, 16 bits are not slower (measured with AVX2, weights of 576 x 576 to 4,096 x 4,096)."""
CONVERTED_WEIGHTS = 2**20
"""The number of weights that are converted at a time, so that they stay in the CPU cache."""
ATTENTION = "granite_demo_float32"
"""The name of ``attention`` in transformers."""
SIXTEEN_BIT = (torch.bfloat16, torch.float16)


class Float32Products(TorchFunctionMode):
    """A context in which linear layers and experts compute products of many 16-bit rows in float32.

    The model does not change. Each torch operation takes a few microseconds more, so use it for prompts only.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Torch calls this instead of each of its functions."""
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


def float32_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute ``torch.nn.functional.linear``, in float32 if that is faster. The result has the dtype of ``x``."""
    if weight.dtype not in SIXTEEN_BIT or x.numel() <= FEW_ROWS * x.shape[-1]:
        return linear(x, weight, bias)
    x32 = x.float()
    blocks = weight.split(max(CONVERTED_WEIGHTS // weight.shape[1], 1))
    product = torch.cat([linear(x32, block.float()) for block in blocks], dim=-1)
    return (product if bias is None else product + bias.float()).to(x.dtype)


def float32_experts(x: torch.Tensor, weights: torch.Tensor, *, offs: torch.Tensor, **others: Any) -> torch.Tensor:
    """Compute ``torch.nn.functional.grouped_mm`` of rows that are sorted by expert, in float32 if that is faster.

    ``x``: (rows, inputs). ``weights``: (experts, inputs, outputs). ``offs``: (experts,), the end of each expert's rows.
    Returns (rows, outputs).
    """
    ends = offs.tolist()
    rows = x.split([end - start for start, end in zip([0, *ends], ends, strict=False)])
    return torch.cat([float32_linear(some, weight.T) for some, weight in zip(rows, weights, strict=True)])


_REPLACED: dict[Callable[..., Any], Callable[..., Any]] = {linear: float32_linear, torch._grouped_mm: float32_experts}


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the sdpa attention of transformers, in float32 for a single token. A chunk is as fast in 16 bits.

    ``query``: (batch, heads, tokens, size). ``key``, ``value``: (batch, KV heads, cached tokens, size). Returns
    (batch, tokens, heads, size).
    """
    dtype = query.dtype
    if query.shape[2] == 1 and dtype in SIXTEEN_BIT:
        query, key, value = query.float(), key.float(), value.float()
    output, nothing = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output.to(dtype), nothing


def register_attention() -> None:
    """Register ``attention`` as ATTENTION in transformers."""
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
