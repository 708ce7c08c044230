"""A small random Granite with heads of the size that attention kernels want, on the GPU."""

from typing import Any

import torch
from transformers import GraniteConfig, GraniteForCausalLM

from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.types.load_options import LoadOptions
from tests.fakes import SOURCE
from tests.loaded import placed

NOISE = 0.3
"""What logits of the model in bfloat16 may be off, where steps are computed in another way: twice what it is on a CPU.
They spread by 1.3, the best two mostly by 0.3."""


def small_model(device: str = "cuda", vocabulary: int = 64, context: int = 512, **options: Any) -> LoadedModel:
    """Two layers, the same weights on every machine. ``options`` are of ``LoadOptions``, or change the result."""
    wanted = {name: options.pop(name) for name in ("dtype", "attention") if name in options}
    placement = placed(LoadOptions(device=device, **{"dtype": "float32", "attention": "sdpa", **wanted}))  # type: ignore[arg-type]
    config = GraniteConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.08,  # with the usual small weights every answer repeats one token
        attention_multiplier=0.125,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = GraniteForCausalLM._from_config(config, attn_implementation=placement.attention, dtype=placement.dtype)
    values: dict[str, Any] = {
        "model": model.to(device).eval(),
        "tokenizer": None,
        "source": SOURCE,
        "placement": placement,
        "context_length": context,
        "eos_ids": frozenset(),
    }
    return LoadedModel(**{**values, **options})
