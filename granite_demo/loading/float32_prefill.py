"""16-bit weights on a CPU without 16-bit arithmetic: what is computed faster in float32. Imports torch.

There a product of a few rows takes as long as the weights take to read, of which 16 bits are half as much; that is a
token of an answer. A product of many rows, which is a prompt, takes several times as long as in float32. So prompts
are widened, and the weights stay as they are. Attention of a single token over a long text is slow in 16 bits, too.
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
"""Up to so many rows 16 bits are as fast: measured with AVX2, for weights of 576 x 576 to 4,096 x 4,096."""
BLOCK = 2**20
"""Weights that are widened at a time: they stay in the cache, and their memory is used again and again."""
ATTENTION = "granite_demo_wide"
"""What transformers calls the attention of this file."""
NARROW = (torch.bfloat16, torch.float16)


class WideProducts(TorchFunctionMode):
    """Inside ``with``, linear layers and experts compute in float32 what is more than a few rows of 16 bits.

    The model is not changed. Takes a few microseconds for each operation of torch, so it is for prompts, not tokens.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch instead of each of its functions."""
        return _WIDE.get(func, func)(*args, **(kwargs or {}))


def wide_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.linear``, in float32 where that is faster."""
    if weight.dtype not in NARROW or x.numel() <= FEW_ROWS * x.shape[-1]:
        return linear(x, weight, bias)
    wide = x.float()
    blocks = weight.split(max(BLOCK // weight.shape[1], 1))
    product = torch.cat([linear(wide, block.float()) for block in blocks], dim=-1)
    return (product if bias is None else product + bias.float()).to(x.dtype)


def wide_experts(x: torch.Tensor, weights: torch.Tensor, *, offs: torch.Tensor, **others: Any) -> torch.Tensor:
    """``torch.nn.functional.grouped_mm`` of rows sorted by expert: ``offs`` is where each one's rows end.

    ``weights``: (experts, size of a row, size of a result).
    """
    ends = offs.tolist()
    rows = x.split([end - start for start, end in zip([0, *ends], ends, strict=False)])
    return torch.cat([wide_linear(some, weight.T) for some, weight in zip(rows, weights, strict=True)])


_WIDE: dict[Callable[..., Any], Callable[..., Any]] = {linear: wide_linear, torch._grouped_mm: wide_experts}


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa, in float32 for a single token; a chunk is as fast in 16 bits."""
    dtype = query.dtype
    if query.shape[2] == 1 and dtype in NARROW:
        query, key, value = query.float(), key.float(), value.float()
    output, nothing = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output.to(dtype), nothing


def register_attention() -> None:
    """Make ATTENTION known to transformers."""
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
