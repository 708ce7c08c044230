"""Where and how a model is loaded: each choice, its reason, and what is refused. Needs no GPU."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from granite_demo.engine.failures import gpu_is_lost
from granite_demo.errors import ConfigurationError, OutOfMemoryError
from granite_demo.loading import placement as placement_module
from granite_demo.loading.cpu_benchmark import Seconds
from granite_demo.loading.device import Placement, choose_device, free_memory, is_out_of_memory
from granite_demo.loading.placement import (
    choose_attention,
    choose_context,
    choose_dtype,
    choose_float32_prefill,
    choose_quantization,
    own_weights,
    place,
    precision_of,
)
from granite_demo.models import memory
from granite_demo.models.catalogue import MODELS
from granite_demo.models.checkpoint import StoredCheckpoint, own_quantization
from granite_demo.models.config import Shape
from granite_demo.models.safetensors_header import StoredTensor
from granite_demo.types.load_options import LoadOptions, Quantization
from granite_demo.types.model_status import REQUESTED, Chosen
from tests.loaded import placed

GB = 10**9
BF16 = torch.bfloat16
EIGHT = MODELS["granite-3.3-8b-instruct"].shape
assert EIGHT


def on_cpu(shape: Shape | None = None, free: int | None = None, **options: Any) -> Placement:
    return placed(LoadOptions(**{"device": "cpu", "dtype": "bfloat16", **options}), shape, free)


# Quantization


def test_left_to_choose_a_cpu_does_not_quantize() -> None:
    placement = on_cpu(EIGHT, 64 * GB)
    assert placement.quantization == "none"
    assert placement.reasons["quantization"] == "bitsandbytes is slow without a CUDA GPU"


@pytest.mark.parametrize("wanted", ["none", "nf4", "fp4", "int8"])
def test_the_quantization_asked_for_is_taken_on_a_cpu(wanted: str) -> None:
    placement = on_cpu(EIGHT, 64 * GB, quantization=wanted)
    assert placement.quantization == wanted
    reason = placement.reasons["quantization"]
    assert reason == REQUESTED if wanted == "none" else "on a CPU" in reason and "slow" in reason


def test_a_gpu_with_room_keeps_the_weights_exact() -> None:
    choice, reason = choose_quantization("auto", "cuda", BF16, EIGHT, 80 * GB)
    assert choice == "none"
    assert reason.endswith("stay free.")


@pytest.mark.parametrize("free", [10 * GB, 18 * GB])
def test_a_small_gpu_gets_4_bit_weights(free: int) -> None:
    # At 18 GB the weights fit, but not 8,192 tokens beside them.
    assert EIGHT
    choice, reason = choose_quantization("auto", "cuda", BF16, EIGHT, free)
    assert choice == "nf4"
    assert reason.endswith("4-bit weights leave more memory")
    assert memory.plan(EIGHT, "int4", free).longest_context > 8192


@pytest.mark.parametrize("wanted", ["nf4", "fp4", "int8"])
def test_the_reason_says_that_experts_are_not_quantized(wanted: str) -> None:
    experts = MODELS["granite-4.0-h-tiny"].shape
    reasons = [on_cpu(shape, 64 * GB, quantization=wanted).reasons["quantization"] for shape in (EIGHT, experts)]
    assert ["the experts are not quantized" in reason for reason in reasons] == [False, True]


def test_an_unknown_shape_is_not_quantized() -> None:
    choice = choose_quantization("auto", "cuda", BF16, None, 80 * GB)
    assert choice == ("none", "the shape of the model is unknown")


@pytest.mark.parametrize("wanted", ["int8", "nf4", "fp4"])
def test_apples_gpu_refuses_bitsandbytes(wanted: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{wanted} needs a CUDA GPU or a CPU"):
        choose_quantization(wanted, "mps", BF16, EIGHT, 64 * GB)


# Attention


@pytest.mark.parametrize("wanted", [f"flash_attention_{version}" for version in (2, 3, 4)])
def test_flash_attention_is_refused_on_a_cpu(wanted: str) -> None:
    message = f"{wanted} was requested, but it needs a CUDA GPU. Choose sdpa."
    with pytest.raises(ConfigurationError) as caught:
        on_cpu(attention=wanted)
    assert str(caught.value) == message


def test_flash_attention_is_refused_in_float32() -> None:
    with pytest.raises(ConfigurationError, match="it does not support float32. Choose sdpa"):
        choose_attention("flash_attention_2", "cuda", torch.float32)


@pytest.mark.parametrize("wanted", ["eager", "sdpa"])
def test_the_attention_asked_for_is_taken(wanted: str) -> None:
    placement = on_cpu(attention=wanted)
    assert (placement.attention, placement.reasons["attention"]) == (wanted, REQUESTED)


def test_left_to_choose_a_cpu_gets_sdpa_and_the_reason() -> None:
    placement = on_cpu()
    assert placement.attention == "sdpa"
    assert placement.reasons["attention"].endswith("flash_attention_2 is not used: it needs a CUDA GPU")


# Precision


def test_the_faster_precision_of_this_cpu_is_measured() -> None:
    dtype, reason = choose_dtype("auto", "cpu")
    assert dtype in (torch.float32, BF16)
    assert re.match(r"measured here: a typical message takes [\d,]+ ms in bfloat16 and [\d,]+ ms in float32", reason)


def on_a_cpu_that_takes(
    monkeypatch: pytest.MonkeyPatch, float32: float, narrow: tuple[float, float], wide: tuple[float, float]
) -> None:
    """Seconds of a message: in float32, and for prompt and answer in 16 bits, with or without products in float32."""

    def measured(dtype: torch.dtype, is_wide: bool, threads: int, attempt: int = 0) -> Seconds:
        if dtype == torch.float32:
            return Seconds(float32 / 2, float32 / 2)
        return Seconds(*(wide if is_wide else narrow))

    monkeypatch.setattr(placement_module, "measured", measured)


@pytest.mark.parametrize(
    ("narrow", "wide", "expected"),
    [
        ((0.3, 0.4), (0.5, 0.4), (BF16, False)),  # a CPU with 16-bit products
        ((4.0, 0.3), (0.4, 0.3), (BF16, True)),  # one without
        ((4.0, 0.6), (0.4, 0.6), (torch.float32, False)),  # one where the answer is slow, too
    ],
)
def test_the_way_that_is_clearly_faster_is_taken(
    monkeypatch: pytest.MonkeyPatch,
    narrow: tuple[float, float],
    wide: tuple[float, float],
    expected: tuple[torch.dtype, bool],
) -> None:
    on_a_cpu_that_takes(monkeypatch, 1.0, narrow, wide)
    placement = on_cpu(dtype="auto")
    assert (placement.dtype, placement.float32_prefill) == expected
    best = min(sum(narrow), sum(wide))
    assert f"takes {best * 1000:.0f} ms in bfloat16 and 1000 ms in float32" in placement.reasons["dtype"]
    assert ("which is exact" in placement.reasons["dtype"]) == (expected[0] == torch.float32)


@pytest.mark.parametrize("wanted", ["bfloat16", "float16"])
def test_prompts_are_widened_where_16_bits_were_asked_for(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    on_a_cpu_that_takes(monkeypatch, 1.0, (4.0, 0.3), (0.4, 0.3))
    placement = on_cpu(dtype=wanted)
    assert placement.float32_prefill
    reason = f"measured here: 256 tokens take 400 ms, and 4000 ms in {wanted}"
    assert ("Prompts", "computed in float32", reason) in placement.facts
    on_a_cpu_that_takes(monkeypatch, 1.0, (0.4, 0.3), (0.35, 0.3))
    assert not on_cpu(dtype=wanted).float32_prefill
    assert "Prompts" not in [name for name, _, _ in on_cpu(dtype=wanted).facts]


def test_nothing_is_widened_on_a_gpu_or_in_float32() -> None:
    assert not choose_float32_prefill(BF16, "mps")[0]
    assert not on_cpu(dtype="float32").float32_prefill


def test_only_experts_are_widened_beside_quantized_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_cpu_that_takes(monkeypatch, 1.0, (4.0, 0.9), (0.4, 0.9))
    experts = MODELS["granite-4.0-h-tiny"].shape
    for shape, widened in ((EIGHT, False), (experts, True)):
        placement = on_cpu(shape, 64 * GB, dtype="auto", quantization="nf4")
        assert (placement.dtype, placement.float32_prefill) == (BF16, widened)


def test_a_measurement_that_cannot_be_trusted_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []

    def measured(dtype: torch.dtype, is_wide: bool, threads: int, attempt: int = 0) -> Seconds:
        attempts.append(attempt)
        return Seconds(0.5, 0.5) if dtype == torch.float32 or attempt else Seconds(3.0, 2.8)

    monkeypatch.setattr(placement_module, "measured", measured)
    dtype, reason = choose_dtype("auto", "cpu")
    assert set(attempts) == {0, 1}
    assert "takes 1000 ms in bfloat16 and 1000 ms in float32" in reason
    assert dtype == torch.float32


def test_float32_that_does_not_fit_gives_way_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_cpu_that_takes(monkeypatch, 1.0, (4.0, 4.0), (4.0, 4.0))
    roomy, small = (on_cpu(EIGHT, free * GB, dtype="auto") for free in (64, 24))
    assert (roomy.dtype, small.dtype) == (torch.float32, BF16)
    assert "float32 is faster here, but does not fit" in small.reasons["dtype"]
    with pytest.raises(OutOfMemoryError):
        on_cpu(EIGHT, 24 * GB, dtype="float32")


# Checkpoints that are quantized already


def stored(method: str, **settings: Any) -> StoredCheckpoint:
    config = {"quantization_config": {"quant_method": method, **settings}}
    return StoredCheckpoint(Path("x"), config, {"a": StoredTensor("U8", (9 * GB,), 9 * GB)}, own_quantization(config))


def test_a_quantized_checkpoint_is_planned_by_its_bytes() -> None:
    own = own_weights(stored("bitsandbytes", load_in_4bit=True), LoadOptions(), "cuda")
    placement = place(LoadOptions(dtype="bfloat16"), Chosen("cpu", ""), EIGHT, 12 * GB, own=own)
    assert placement.quantization == "nf4"
    assert placement.reasons["quantization"] == "the checkpoint's own, bitsandbytes"
    assert placement.context
    assert placement.context < 30_000
    with pytest.raises(OutOfMemoryError, match=r"weights take 9.0 GB"):
        place(LoadOptions(dtype="bfloat16"), Chosen("cpu", ""), EIGHT, 8 * GB, own=own)


@pytest.mark.parametrize("wanted", ["none", "int8", "fp4"])
def test_another_quantization_of_a_quantized_checkpoint_is_refused(wanted: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"quantized already \(nf4\), so {wanted} cannot be applied"):
        own_weights(stored("bitsandbytes", load_in_4bit=True), LoadOptions(quantization=wanted), "cpu")
    own_weights(stored("bitsandbytes", load_in_4bit=True), LoadOptions(quantization="nf4"), "cpu")


def test_fp8_is_unpacked_without_a_gpu_and_said_so() -> None:
    own = own_weights(stored("fp8"), LoadOptions(), "cpu")
    assert (own.label, own.stored) == ("none", None)
    assert "the checkpoint is in FP8; without a CUDA GPU its weights are unpacked to bfloat16" in own.reason
    with pytest.raises(ConfigurationError, match="FP8 runs in bfloat16, not in float32"):
        own_weights(stored("fp8"), LoadOptions(dtype="float32"), "cpu")


@pytest.mark.parametrize(("capability", "label"), [((8, 0), "none"), ((9, 0), "FP8")])
def test_fp8_stays_on_a_gpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], label: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    own = own_weights(stored("fp8"), LoadOptions(), "cuda")
    assert (own.label, own.stored) == (label, 9 * GB if label == "FP8" else None)


def test_apples_gpu_runs_in_bfloat16() -> None:
    assert choose_dtype("auto", "mps") == (BF16, "Granite was trained in this precision")


@pytest.mark.parametrize("wanted", ["bfloat16", "float16", "float32"])
def test_the_precision_asked_for_is_taken(wanted: str) -> None:
    assert choose_dtype(wanted, "cpu") == (getattr(torch, wanted), REQUESTED)


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32])
@pytest.mark.parametrize("quantization", get_args(Quantization)[1:])
def test_the_planner_knows_every_precision(dtype: torch.dtype, quantization: str) -> None:
    expected = {"none": {BF16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype], "int8": "int8"}
    assert precision_of(dtype, quantization) == expected.get(quantization, "int4")
    assert precision_of(dtype, quantization) in get_args(memory.Precision)


def test_an_engine_that_borrows_a_gpu_loads_the_model_without_one() -> None:
    options = LoadOptions(engine="zerogpu")
    device = choose_device(options)
    assert device.value == "cpu"
    placement = place(options, device)
    assert (placement.device, placement.dtype) == ("cpu", torch.bfloat16)
    assert placement.reasons["device"] == "the GPU is only for the process that writes an answer"
    assert place(replace(options, dtype="float32"), device).dtype == torch.float32


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize(
    ("wanted", "apple", "expected"),
    [
        ("auto", False, ("cpu", "no GPU was found")),
        ("cpu", False, ("cpu", REQUESTED)),
        ("cuda", False, None),
        ("mps", False, None),
        ("auto", True, ("mps", "an Apple GPU was found")),
        ("mps", True, ("mps", REQUESTED)),
        ("cpu", True, ("cpu", REQUESTED)),
    ],
)
def test_the_device_without_torch(
    wanted: Any, apple: bool, expected: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("granite_demo.loading.device._is_apple", lambda: apple)
    monkeypatch.setattr("granite_demo.loading.device.find_devices", list)
    if expected:
        assert choose_device(LoadOptions(device=wanted)) == Chosen(*expected)
    else:
        with pytest.raises(ConfigurationError, match=f"^The device {wanted} needs torch and transformers"):
            choose_device(LoadOptions(device=wanted))


# Memory and context


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_what_cannot_fit_is_refused_with_what_to_do(quantization: str) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        on_cpu(EIGHT, 4 * GB, quantization=quantization)
    text = str(caught.value)
    assert text.startswith("The weights take ")
    assert "the model cannot run in 4.0 GB" in text
    assert text.endswith("Choose a smaller model or precision, or unload the loaded model.")


def test_a_model_larger_than_this_machine_is_refused() -> None:
    assert EIGHT
    with pytest.raises(OutOfMemoryError, match="Choose a smaller model"):
        on_cpu(replace(EIGHT, layers=100_000, attention_layers=100_000))


def test_the_context_is_limited_to_what_fits() -> None:
    placement = on_cpu(EIGHT, 24 * GB)
    assert EIGHT
    assert placement.context == memory.plan(EIGHT, "bf16", 24 * GB).longest_context
    assert 8192 < placement.context < EIGHT.context_length
    assert placement.reasons["context"] == "the most that fits beside the weights in 24.0 GB"


def test_a_context_asked_for_is_limited_by_memory_too() -> None:
    fitting, limited = (on_cpu(EIGHT, 24 * GB, context=context) for context in (8192, 131072))
    assert (fitting.context, fitting.reasons["context"]) == (8192, REQUESTED)
    assert limited.context == on_cpu(EIGHT, 24 * GB).context
    assert "24.0 GB" in limited.reasons["context"]


def test_with_room_the_context_is_the_checkpoints_own() -> None:
    placement = on_cpu(EIGHT, 640 * GB)
    assert (placement.context, placement.reasons["context"]) == (None, "the checkpoint's own limit")


def test_a_context_beyond_the_checkpoint_is_its_own() -> None:
    placement = on_cpu(EIGHT, 640 * GB, context=1_000_000)
    assert placement.context is None
    assert placement.reasons["context"] == "the checkpoint's own limit; 1,000,000 were requested"
    assert choose_context(1_000_000, None) == (1_000_000, REQUESTED)


def test_without_a_shape_nothing_is_planned() -> None:
    assert on_cpu(free=1).context is None
    assert on_cpu(free=1, context=512).context == 512


def test_memory_is_measured() -> None:
    assert free_memory("cpu") > 10**6


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        MemoryError(),
    ],
)
def test_what_says_that_there_is_no_memory_left_leaves_the_gpu_usable(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert not gpu_is_lost(error)


def test_other_errors_do_not_say_so() -> None:
    assert not is_out_of_memory(RuntimeError("The size of tensor a must match that of tensor b"))
    assert not is_out_of_memory(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    assert gpu_is_lost(torch.AcceleratorError("CUDA error: device-side assert triggered"))


# Facts


@pytest.mark.parametrize("quantization", get_args(Quantization))
@pytest.mark.parametrize(("shape", "context"), [(None, None), (EIGHT, None), (EIGHT, 4096), (EIGHT, 131072)])
def test_every_choice_has_a_reason(quantization: str, shape: Shape | None, context: int | None) -> None:
    placement = on_cpu(shape, 24 * GB, quantization=quantization, context=context)
    chosen = {field.name for field in fields(Placement)} - {"spread", "processes", "reasons"}
    assert set(placement.reasons) == chosen
    assert all(placement.reasons.values())
    names = [name for name, _, _ in placement.facts if name != "Prompts"]
    assert names == ["Device", "Precision", "Quantization", "Attention"]
    assert all(value and reason for _, value, reason in placement.facts)
