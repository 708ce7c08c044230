"""Tests for the four ways to use a model in the documentation of Granite, with tiny checkpoints.

Each answer is compared with that of ``generate`` of transformers for the same files.
"""

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from granite_demo.backends.open_model import open_model
from granite_demo.engine.interleaved.dynamic import DynamicRunner
from granite_demo.engine.interleaved.engine import InterleavedEngine
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.loading.placement import precision_of
from granite_demo.models import memory
from granite_demo.models.config import linears
from granite_demo.prompts.tokenizer import encode
from granite_demo.types.load_options import LoadOptions, LoadStage
from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import SamplingParams
from tests.loaded import load_checkpoint
from tests.tinymodels import KINDS, write_checkpoint

PROMPT = "w5 w6 w7 w8 w9 w10 w11"
TOKENS = 20
HYBRIDS = [kind for kind in KINDS if kind != "granite"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a checkpoint of each kind."""
    root = tmp_path_factory.mktemp("tiny")
    return {kind: write_checkpoint(root / kind.replace(" ", "-"), kind) for kind in KINDS}


def load(folder: Path, **options: Any) -> LoadedModel:
    loaded = load_checkpoint(folder, LoadOptions(device="cpu", **options))
    # float32 products round differently. With random weights, this can change a token.
    return replace(loaded, placement=replace(loaded.placement, float32_prefill=False))


async def answer(
    loaded: LoadedModel, text: str = PROMPT, tokens: int = TOKENS, chunk: int | None = None, **sampling: Any
) -> list[int]:
    runner = DynamicRunner(loaded, 0)
    runner.chunk = chunk or runner.chunk
    engine = InterleavedEngine(runner, loaded.eos_ids)
    prompt = encode(loaded.tokenizer, text)
    items = [item async for item in engine.generate(prompt, SamplingParams(max_tokens=tokens, **sampling))]
    ids = [item.id for item in items if isinstance(item, Token)]
    engine.close()
    return ids


def reference(model: Any, tokenizer: Any, text: str = PROMPT, **options: Any) -> list[int]:
    """Generate as in the documentation, with the tensors of the tokenizer."""
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, **options)
    ids: list[int] = output[0, inputs.input_ids.shape[1] :].tolist()
    return ids


def in_4_bit(model: Any) -> list[torch.nn.Module]:
    return [module for module in model.modules() if type(module).__name__ == "Linear4bit"]


# Route 1: pipeline("text-generation") in bfloat16


async def test_completion_in_bfloat16_equals_the_pipeline(folders: dict[str, Path]) -> None:
    loaded = load(folders["granite"], dtype="bfloat16")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    ours = await answer(loaded)
    assert len(set(ours)) > 5, "an answer that repeats itself shows nothing"
    generator: Any = pipeline("text-generation", model=str(folders["granite"]), dtype=torch.bfloat16, device="cpu")
    theirs = generator(PROMPT, max_new_tokens=TOKENS, max_length=None, do_sample=False, return_full_text=False)
    assert loaded.tokenizer.decode(ours, skip_special_tokens=True) == theirs[0]["generated_text"].strip()


# Route 2: AutoModelForCausalLM with a device map, an attention implementation and a static cache


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
async def test_each_attention_equals_generate_with_either_cache(
    folders: dict[str, Path], attention: Any, dtype: Any
) -> None:
    loaded = load(folders["granite"], dtype=dtype, attention=attention)
    assert loaded.model.config._attn_implementation == loaded.placement.attention == attention
    ours = await answer(loaded)
    tokenizer = AutoTokenizer.from_pretrained(folders["granite"])
    model: Any = AutoModelForCausalLM.from_pretrained(
        folders["granite"], dtype=getattr(torch, dtype), device_map="cpu", attn_implementation=attention
    )
    assert ours == reference(model, tokenizer)
    assert ours == reference(model, tokenizer, cache_implementation="static")


# Route 3: bitsandbytes


@pytest.mark.parametrize("quantization", ["nf4", pytest.param("fp4", marks=pytest.mark.release)])
async def test_int4_is_quantized_and_takes_the_planned_bytes(folders: dict[str, Path], quantization: Any) -> None:
    loaded = load(folders["granite"], dtype="bfloat16", quantization=quantization)
    linears_in_4_bit: list[Any] = in_4_bit(loaded.model)
    assert len(linears_in_4_bit) == 3 * 7
    for linear in linears_in_4_bit:
        assert linear.weight.dtype == torch.uint8
        assert linear.weight.quant_state.quant_type == quantization
        assert linear.weight.quant_state.nested, "double quantization"
        assert linear.compute_dtype == torch.bfloat16
    assert loaded.model.lm_head.weight.dtype == torch.bfloat16
    ours = await answer(loaded)
    assert ours == reference(loaded.model, loaded.tokenizer)
    assert ours != await answer(load(folders["granite"], dtype="bfloat16")), "nothing was rounded"
    assert loaded.weight_bytes == pytest.approx(planned(loaded), rel=0.01)


async def test_int8_takes_the_planned_bytes_and_does_not_flood_the_log(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    loaded = load(folders["granite"], dtype="bfloat16", quantization="int8")
    linear: Any = loaded.model.model.layers[0].self_attn.q_proj
    assert type(linear).__name__ == "Linear8bitLt"
    assert linear.weight.dtype == torch.int8
    before = loaded.weight_bytes
    assert await answer(loaded) == reference(loaded.model, loaded.tokenizer)
    assert before == pytest.approx(planned(loaded), rel=0.01)
    assert "MatMul8bitLt" not in caplog.text


def planned(loaded: LoadedModel) -> int:
    assert loaded.spec.shape
    precision = precision_of(loaded.placement.dtype, loaded.placement.quantization)
    return memory.weight_bytes(loaded.spec.shape, precision)


# Route 4: mixtures of experts and hybrids


@pytest.mark.parametrize("kind", HYBRIDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
async def test_a_mixture_or_hybrid_equals_generate(folders: dict[str, Path], kind: str, dtype: Any) -> None:
    loaded = load(folders[kind], dtype=dtype)
    expected = "GraniteMoeForCausalLM" if kind == "granitemoe" else "GraniteMoeHybridForCausalLM"
    assert type(loaded.model).__name__ == expected
    ours = await answer(loaded)
    assert len(set(ours)) > 5, "an answer that repeats itself shows nothing"
    assert ours == reference(loaded.model, loaded.tokenizer)
    assert loaded.weight_bytes == pytest.approx(planned(loaded), rel=0.01)


@pytest.mark.parametrize("chunk", [1, 3, 63])
async def test_a_hybrid_reads_a_long_prompt_in_chunks(folders: dict[str, Path], chunk: int) -> None:
    # The state of the Mamba layers is carried from chunk to chunk. A chunk can be shorter than the convolution.
    loaded = load(folders["hybrid"], dtype="float32")
    text = " ".join(f"w{3 + index * 7 % 60}" for index in range(64))
    assert await answer(loaded, text, chunk=chunk) == reference(loaded.model, loaded.tokenizer, text)


async def test_a_hybrid_starts_from_one_token(folders: dict[str, Path]) -> None:
    loaded = load(folders["hybrid"], dtype="float32")
    assert await answer(loaded, "w9") == reference(loaded.model, loaded.tokenizer, "w9")


async def test_a_hybrid_samples_the_same_with_the_same_seed(folders: dict[str, Path]) -> None:
    loaded = load(folders["hybrid"], dtype="float32")
    first, again, other = [await answer(loaded, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert first == again
    assert first != other


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_is_opened_and_warmed_up(folders: dict[str, Path], kind: str) -> None:
    stages: list[LoadStage] = []
    ready = open_model(
        folders[kind],
        0,
        LoadOptions(model=str(folders[kind]), device="cpu", dtype="float32"),
        lambda stage, fraction, detail: stages.append(stage),
        threading.Event(),
    )
    assert list(dict.fromkeys(stages)) == ["loading", "warming up"]
    answered = [token async for token in ready.engine.generate([5, 6, 7], SamplingParams(max_tokens=3))]
    assert 1 <= len(answered) <= 3
    ready.engine.close()


@pytest.mark.parametrize("kind", ["granitemoe", "hybrid"])
async def test_int4_does_not_quantize_experts_and_the_plan_says_so(folders: dict[str, Path], kind: str) -> None:
    loaded = load(folders[kind], dtype="bfloat16", quantization="nf4")
    shape = loaded.spec.shape
    assert shape
    experts = {name: weight for name, weight in loaded.model.named_parameters() if "experts" in name}
    assert len(experts) == 2 * shape.layers
    assert {weight.dtype for weight in experts.values()} == {torch.bfloat16}
    assert len(in_4_bit(loaded.model)) == sum(linear.count for linear in linears(shape))
    assert loaded.weight_bytes == pytest.approx(planned(loaded), rel=0.01)
    assert "experts, which bitsandbytes does not quantize" in memory.plan(shape, "int4", 10**9).reason
    assert await answer(loaded) == reference(loaded.model, loaded.tokenizer)
