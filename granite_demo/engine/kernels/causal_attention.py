"""The attention implementation of fused layers in continuous batching without FlashAttention.

The kernels of the layers attend to the cache of continuous batching, without transformers. A text that is scored, and
other calls of the model, have a cache of their own. Their attention is here.
"""

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "granite_demo_flash"
"""The name in transformers, which makes no masks for an implementation with "flash" in its name."""


def attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: None, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Compute causal attention of the last tokens of texts of the same length, without padding.

    ``query``: (batch, heads, n, size). ``key``, ``value``: (batch, KV heads, all tokens, size). Returns (batch, n,
    heads, size).
    """
    count, known = query.shape[2], key.shape[2]
    mask = None
    if 1 < count < known:
        mask = torch.ones((count, known), dtype=torch.bool, device=query.device).tril(known - count)
    output, _ = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    return output, None


def register() -> None:
    """Register ``attend`` as ``NAME`` in transformers."""
    AttentionInterface.register(NAME, attend)
