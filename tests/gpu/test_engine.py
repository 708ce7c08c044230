"""The engine on a GPU, on a small random Granite."""

from typing import Any

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from granite_demo.engine.factory import create_engine
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.types.load_options import LoadOptions
from tests.engine.running import answer
from tests.fakes import SOURCE
from tests.loaded import placed

pytestmark = pytest.mark.gpu


def small_model() -> LoadedModel:
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    placement = placed(LoadOptions(device="cuda", dtype="float32"))
    with torch.device("cuda"):
        model = GraniteForCausalLM(config).eval()
    return LoadedModel(model, None, SOURCE, placement, 4096, frozenset())


async def test_greedy_equals_generate() -> None:
    loaded = small_model()
    engine = create_engine(loaded)
    prompt = list(range(2, 200))
    ours = await answer(engine, prompt, max_tokens=100)
    output = loaded.model.generate(torch.tensor([prompt], device="cuda"), max_new_tokens=100, do_sample=False)
    assert ours == output[0, len(prompt) :].tolist()
    engine.close()


async def test_a_seed_repeats_a_sampled_answer() -> None:
    engine = create_engine(small_model())
    sampling: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 3, "max_tokens": 30}
    first, again = [await answer(engine, [1, 2, 3], **sampling) for _ in range(2)]
    assert first == again
    engine.close()


async def test_memory_is_back_after_close() -> None:
    before = torch.cuda.memory_allocated()
    loaded = small_model()
    engine = create_engine(loaded)
    assert len(await answer(engine, [1, 2, 3], max_tokens=5)) == 5
    assert torch.cuda.memory_allocated() > before
    engine.close()
    del loaded
    assert torch.cuda.memory_allocated() <= before * 1.01 + 20_000_000
