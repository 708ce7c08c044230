"""The sizes are those that torch and bitsandbytes allocate, and the text of a plan agrees with its numbers."""

from collections import Counter
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from granite_demo.errors import InvalidRequestError
from granite_demo.models.catalogue import MODELS
from granite_demo.models.config import Linear, Shape, count_parameters, linears
from granite_demo.models.memory import (
    MIN_CONTEXT,
    RUNTIME_BYTES,
    Precision,
    choose_precision,
    kv_bytes_per_token,
    overhead_bytes,
    parse_memory,
    plan,
    state_bytes,
    weight_bytes,
)
from tests.models.test_config import CONFIGS, SMALL, config_of, empty_model, shape_of

GB, KIB = 10**9, 2**10
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("4.1-3b", "bf16", 6.8),
        ("4.1-8b", "bf16", 16.8),
        ("4.1-30b", "bf16", 57.7),
        ("4.1-3b", "fp32", 13.6),
        ("4.1-3b", "int4", 2.1),
        ("4.1-8b", "int4", 4.9),
        ("4.1-30b", "int4", 15.5),
    ],
)
def test_weights_have_the_known_sizes(name: str, precision: Precision, expected: float) -> None:
    assert weight_bytes(shape_of(name), precision) / GB == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("name", "kib"),
    [("4.1-3b", 80), ("4.1-8b", 160), ("4.1-30b", 256), ("4.0-350m", 28), ("4.0-h-350m", 4)]
    + [("4.0-h-micro", 8), ("4.0-h-1b", 8), ("4.0-h-tiny", 8), ("4.0-h-small", 16)],
)
def test_the_cache_has_the_known_sizes(name: str, kib: int) -> None:
    for precision in PRECISIONS:
        expected = 2 * kib if precision == "fp32" else kib
        assert kv_bytes_per_token(shape_of(name), precision) == expected * KIB


@pytest.mark.parametrize("kind", ["granite", "granite, untied, biases", "shared", "hybrid", "hybrid without experts"])
def test_bitsandbytes_replaces_the_linears_that_are_counted(kind: str) -> None:
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    config = SMALL | CONFIGS[kind]
    model = empty_model(config)
    kept = get_keys_to_not_convert(model)
    replace_with_bnb_linear(model, kept, BitsAndBytesConfig(load_in_4bit=True))
    replaced = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    found = Counter((module.out_features, module.in_features) for module in replaced)
    counted: Counter[tuple[int, int]] = Counter()
    for linear in linears(Shape.from_config(config)):
        counted[linear.rows, linear.columns] += linear.count
    assert found == counted


def tensor_bytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def bytes_in_4_bit(linear: Linear, double_quant: bool) -> int:
    """Return the bytes that bitsandbytes allocates for a weight of this size."""
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(linear.rows, linear.columns)
    packed, state = quantize_4bit(weight, compress_statistics=double_quant, quant_type="nf4")
    tensors = [packed, state.absmax, state.code]
    if double_quant:
        tensors += [state.offset, state.state2.absmax, state.state2.code]
    return tensor_bytes(*tensors)


def bytes_in_8_bit(linear: Linear) -> int:
    from bitsandbytes.functional import int8_vectorwise_quant

    weight, scales, _ = int8_vectorwise_quant(torch.randn(linear.rows, linear.columns, dtype=torch.float16))
    return tensor_bytes(weight, scales)


@pytest.mark.parametrize("kind", ["granite", "granite, untied, biases", "hybrid without experts", "moe"])
def test_quantized_weights_have_the_sizes_of_bitsandbytes(kind: str) -> None:
    # 258 * 258 elements are a little more than 1,040 blocks, so both levels must round up.
    shape = Shape.from_config(SMALL | CONFIGS[kind] | {"hidden_size": 258, "mamba_n_heads": 4})
    kept = 2 * (count_parameters(shape).total - sum(linear.count * linear.size for linear in linears(shape)))
    for double_quant in (True, False):
        quantized = sum(linear.count * bytes_in_4_bit(linear, double_quant) for linear in linears(shape))
        assert weight_bytes(shape, "int4", double_quant) == kept + quantized
    quantized = sum(linear.count * bytes_in_8_bit(linear) for linear in linears(shape))
    assert weight_bytes(shape, "int8") == kept + quantized


def test_experts_are_not_quantized() -> None:
    shape = shape_of("4.0-h-tiny")
    experts = 2 * count_parameters(shape).experts
    assert experts / GB == pytest.approx(12.1, abs=0.05)
    assert experts < weight_bytes(shape, "int4") < weight_bytes(shape, "bf16") < 1.1 * weight_bytes(shape, "int4")
    for precision in ("int4", "int8"):
        assert "12.1 GB of the weights are experts, which bitsandbytes does not" in plan(shape, precision, GB).reason
    assert "experts" not in plan(shape, "bf16", GB).reason
    assert "experts" not in plan(shape_of("4.1-8b"), "int4", GB).reason


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
@pytest.mark.parametrize("kind", ["granite", "moe", "hybrid"])
def test_the_cache_of_a_real_model_has_this_size(kind: str, precision: Precision, dtype: torch.dtype) -> None:
    config = SMALL | CONFIGS[kind]
    shape = Shape.from_config(config)
    model = empty_model(config).to_empty(device="cpu").to(dtype)
    for tensor in model.state_dict().values():
        tensor.zero_()
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        for length in (7, 1):
            model(input_ids=torch.ones((1, length), dtype=torch.long), past_key_values=cache, use_cache=True)
    held: dict[str, list[Any]] = {"kv": [], "state": []}
    layers: list[Any] = cache.layers
    for layer in layers:
        if hasattr(layer, "recurrent_states"):
            held["state"] += [*layer.conv_states.values(), *layer.recurrent_states.values()]
        else:
            held["kv"] += [layer.keys, layer.values]
    assert tensor_bytes(*held["kv"]) == 8 * kv_bytes_per_token(shape, precision)
    assert tensor_bytes(*held["state"]) == state_bytes(shape, precision)


def test_the_overhead_grows_with_each_of_its_parts() -> None:
    small, large = shape_of("4.1-3b"), shape_of("4.1-30b")
    assert RUNTIME_BYTES < overhead_bytes(small, "bf16", 1) < overhead_bytes(small, "bf16", 100_000)
    assert overhead_bytes(small, "bf16", 1) < overhead_bytes(large, "bf16", 1)
    # The largest weight in 16 bits.
    assert overhead_bytes(large, "int4", 1) - overhead_bytes(large, "bf16", 1) == 2 * 4096 * 32768
    dense, hybrid = shape_of("4.0-1b"), shape_of("4.0-h-1b")
    assert overhead_bytes(hybrid, "bf16", 1) > overhead_bytes(dense, "bf16", 1)


names = st.sampled_from([name for name, spec in MODELS.items() if spec.shape])


@given(names, st.sampled_from(PRECISIONS), st.integers(1, 200 * GB), st.integers(1, 200_000))
def test_a_plan_agrees_with_itself(name: str, precision: Precision, memory: int, context: int) -> None:
    shape = MODELS[name].shape
    assert shape
    made = plan(shape, precision, memory, context)
    assert made.context == min(context, shape.context_length)
    assert made.kv_at_context == made.kv_per_token * made.context
    assert made.total == made.weights + made.state + made.overhead + made.kv_at_context
    assert 0 <= made.longest_context <= shape.context_length
    assert (made.total <= memory) == (made.longest_context >= made.context)
    if made.longest_context:
        assert plan(shape, precision, memory, made.longest_context).total <= memory
    if made.longest_context < shape.context_length:
        assert plan(shape, precision, memory, made.longest_context + 1).total > memory
    if made.mark == "fits":
        assert made.total <= 0.9 * memory
    elif made.mark == "does not fit":
        assert made.longest_context < min(made.context, MIN_CONTEXT)
    else:
        assert made.longest_context >= min(made.context, MIN_CONTEXT)
        assert made.total > 0.9 * memory


def test_the_marks_and_their_reasons() -> None:
    shape = shape_of("4.1-8b")
    fits = plan(shape, "bf16", 24 * GB, 8192)
    assert fits.mark == "fits"
    assert "weights of 16.8 GB and a context of 8,192 tokens" in fits.reason
    assert f"{(24 * GB - fits.total) / GB:.1f} GB of 24.0 GB stay free" in fits.reason
    full = plan(shape, "bf16", fits.total + 10**8, 8192)
    assert (full.mark, full.longest_context >= 8192) == ("tight", True)
    assert "only 0.1 GB of" in full.reason
    shorter = plan(shape, "bf16", 24 * GB)
    assert (shorter.mark, shorter.context) == ("tight", 131072)
    assert f"up to {shorter.longest_context:,} tokens, but not with 131,072" in shorter.reason
    none = plan(shape, "bf16", 16 * GB)
    assert (none.mark, none.longest_context) == ("does not fit", 0)
    assert "weights take 16.8 GB, so the model cannot run in 16.0 GB" in none.reason
    assert plan(shape, "int4", 16 * GB, 8192).mark == "fits"


def test_a_context_of_a_few_tokens_does_not_count() -> None:
    shape = shape_of("4.1-8b")
    least = plan(shape, "bf16", 100 * GB, MIN_CONTEXT).total
    assert plan(shape, "bf16", least).mark == "tight"
    assert plan(shape, "bf16", least - 1).mark == "does not fit"
    assert plan(shape, "bf16", least - 1, MIN_CONTEXT - 8).mark == "tight"


def test_double_quantization_is_the_callers_choice() -> None:
    shape = shape_of("4.1-8b")
    assert plan(shape, "int4", 8 * GB, double_quant=False).weights == weight_bytes(shape, "int4", False)
    assert weight_bytes(shape, "int4", False) > weight_bytes(shape, "int4", True)


@pytest.mark.parametrize(("memory", "context"), [(0, 1), (-1, None), (GB, 0), (GB, -5)])
def test_nothing_fits_into_nothing(memory: int, context: int | None) -> None:
    with pytest.raises(InvalidRequestError, match="above 0"):
        plan(shape_of("4.1-3b"), "bf16", memory, context)


@pytest.mark.parametrize(
    ("name", "memory", "context", "precision", "words"),
    [
        ("4.1-8b", 24, 8192, "bf16", "keeps the exact weights"),
        ("4.1-8b", 16, 8192, "int4", "bf16 does not fit; int4 is smaller"),
        ("4.1-8b", 20, 8192, "bf16", "keeps the exact weights"),
        ("4.1-8b", 18, 8192, "int4", "tokens; int4 is smaller"),
        ("4.1-8b", 24, None, "bf16", "up to"),  # both fit only with a shorter context
        ("4.1-30b", 8, 8192, None, "Not even int4 fits"),
        ("4.0-h-tiny", 12, 8192, None, "bitsandbytes does not quantize"),
    ],
)
def test_the_choose_precision(name: str, memory: int, context: int | None, precision: str | None, words: str) -> None:
    choice = choose_precision(shape_of(name), memory * GB, context)
    assert choice.precision == precision
    assert words in choice.reason
    assert choice.reason.endswith(choice.plan.reason)
    assert choice.plan.precision == (precision or "int4")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * GB),
        ("24 GiB", 24 * 2**30),
        ("512 MB", 512 * 10**6),
        ("24", 24 * GB),
        (" 1.5 tib\n", 3 * 2**39),
        ("8g", 8 * GB),
        ("640k", 640_000),
        ("0.5", GB // 2),
    ],
)
def test_memory_is_read(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-8GB", "0", "0.0 GB", "1e3", "24 GBit", "24 B", "1,5 GB", "nan", "9" * 400, "٢٤", "24 24"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_memory(text)


@given(st.text())
def test_any_text_is_an_amount_or_is_refused(text: str) -> None:
    try:
        size = parse_memory(text)
    except InvalidRequestError:
        return
    assert size > 0


def test_a_real_hybrid_is_planned_from_its_file() -> None:
    shape = shape_of("4.0-h-micro")
    assert plan(Shape.from_config(config_of(shape)), "int4", 8 * GB) == plan(shape, "int4", 8 * GB)
    # With a constant state and a small cache, a full context takes less than that of a dense model of this size.
    dense = plan(shape_of("4.0-micro"), "int4", 8 * GB)
    hybrid = plan(shape, "int4", 8 * GB)
    assert hybrid.kv_at_context + hybrid.state < 0.15 * dense.kv_at_context
    assert (hybrid.longest_context, dense.longest_context < 131072) == (131072, True)
