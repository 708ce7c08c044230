"""The attention without masks, compared with that of transformers with masks."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from granite_demo.engine.kernels import causal_attention
from tests.gpu.checkpoints import small_config


@pytest.mark.parametrize("chunks", [(20,), (7, 12, 1), (1, 1, 18)])
def test_chunks_of_a_text_have_the_logits_of_the_complete_text(chunks: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(small_config(num_hidden_layers=2), dtype=torch.float32).eval()
    ids = torch.randint(0, 1000, (1, 20))
    with torch.inference_mode():
        expected = model(ids).logits
        causal_attention.register()
        model.config._attn_implementation = causal_attention.NAME
        cache = DynamicCache(config=model.config)
        logits = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split(chunks, dim=1)]
    assert torch.allclose(torch.cat(logits, dim=1), expected, atol=1e-4)
