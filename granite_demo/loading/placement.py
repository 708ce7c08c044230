"""The second stage of opening a model: options and a shape in, a ``Placement`` out.

Every choice has a reason. This is the only module that chooses the device. Imports torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.utils.import_utils import (
    is_bitsandbytes_available,
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_flash_attn_4_available,
    is_kernels_available,
)

from granite_demo.errors import ConfigurationError, GraniteDemoError, OutOfMemoryError
from granite_demo.loading import tensor_parallel
from granite_demo.loading.cpu_benchmark import MESSAGE_PROMPT, Seconds, measured
from granite_demo.loading.device import Placement, free_memory
from granite_demo.loading.source import Source
from granite_demo.loading.tensor_parallel import ALONE, Group
from granite_demo.models import memory
from granite_demo.models.checkpoint import (
    OwnQuantization,
    StoredCheckpoint,
    read_checkpoint,
    require_packages,
)
from granite_demo.models.config import Shape
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.model_status import REQUESTED, Chosen, gigabytes

PLANNED: dict[torch.dtype, memory.Precision] = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
}
"""The planner's names for the types of weights that are not quantized."""
EAGER_ONLY = frozenset({"granite_swa", "granitemoe_swa"})
"""Model types with attention sinks, which sdpa refuses."""
WILD = 3.0
"""A ratio of two measurements above which both are repeated."""
WORTH_ROUNDING = 0.8
"""A less exact method is used if a message then takes less than this part of its time."""


def place_source(source: Source, options: LoadOptions, chosen: Chosen[str], group: Group = ALONE) -> Placement:
    """Return the placement of the files of ``source`` on the ``chosen`` device. The CPU runs a GGUF file.

    The first process of ``group`` decides for all, because each would measure something else. Raises as ``place``, and
    as ``read_checkpoint``.
    """
    checkpoint = read_checkpoint(source.folder)
    shape, own = known_shape(checkpoint.config), None
    if checkpoint.quantization:
        own = own_weights(checkpoint, options, chosen.value)
    if options.attention == "auto" and checkpoint.config.get("model_type") in EAGER_ONLY:
        eager = place(replace(options, attention="eager"), chosen, shape, own=own)
        return eager.with_reason("attention", "transformers has no other for this architecture here")
    if group.size == 1:
        return place(options, chosen, shape, own=own)
    free = group.least(free_memory(chosen.value)) * (group.size if chosen.value == "cuda" else 1)
    return group.from_first(lambda: place(options, chosen, shape, free, group.size, own))


@dataclass(frozen=True, slots=True)
class OwnWeights:
    """The weights of a quantized checkpoint on a device."""

    label: str
    """Their format, or none if they are unpacked to bfloat16."""
    stored: int | None
    """Their bytes; None for those of bfloat16."""
    reason: str
    dtype: str
    """The type that ``auto`` selects for the other weights; auto if all are possible."""


def own_weights(checkpoint: StoredCheckpoint, options: LoadOptions, device: str) -> OwnWeights:
    """Return what becomes of the weights of a quantized checkpoint.

    Raises ConfigurationError if a package is missing, or the options request another precision.
    """
    own = checkpoint.quantization
    assert own
    if options.quantization not in ("auto", own.label):
        raise ConfigurationError(
            f"This checkpoint is quantized already ({own.label}), so {options.quantization} cannot be applied. Leave "
            "out the quantization, or use the original checkpoint."
        )
    if not own.known.unpacked_on_cpu:
        require_packages(own)
        return OwnWeights(own.label, checkpoint.weight_bytes, f"the checkpoint's own, {own.known.title}", "auto")
    if options.dtype not in ("auto", "bfloat16"):
        raise ConfigurationError(f"A checkpoint in {own.label} runs in bfloat16, not in {options.dtype}.")
    if problem := _unpacked_because(own, device):
        return OwnWeights("none", None, f"the checkpoint is in {own.label}; {problem}", "bfloat16")
    return OwnWeights(own.label, checkpoint.weight_bytes, f"the checkpoint's own, {own.known.title}", "bfloat16")


def _unpacked_because(own: OwnQuantization, device: str) -> str:
    """Return why transformers unpacks the weights to bfloat16, as a clause; empty if it does not."""
    if device != "cuda":
        return "without a CUDA GPU its weights are unpacked to bfloat16"
    if own.method == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        return "a GPU of compute capability below 8.9 unpacks its weights to bfloat16"
    if own.method == "mxfp4" and not is_kernels_available():
        return "without the package kernels its weights are unpacked to bfloat16"
    return ""


def place(
    options: LoadOptions,
    chosen: Chosen[str],
    shape: Shape | None = None,
    free: int | None = None,
    processes: int = 1,
    own: OwnWeights | None = None,
) -> Placement:
    """Return the placement on the ``chosen`` device, by ``shape`` and the ``free`` bytes (by default measured).

    With several ``processes``, ``free`` is the memory of all together. ``own``: the weights are quantized already.

    Raises ConfigurationError if this machine cannot do it, and OutOfMemoryError if the model does not fit.
    """
    device, reasons = chosen.value, {"device": chosen.reason}
    borrows_gpu = options.engine_kind is not None and options.engine_kind.borrows_gpu
    if own and own.dtype != "auto":
        options = replace(options, dtype="bfloat16")
    dtype, reasons["dtype"] = choose_dtype(options.dtype, device, borrows_gpu)
    free, spread = free_memory(device) if free is None else free, False

    def quantize(free: int) -> str:
        if own:
            reasons["quantization"] = own.reason
            return own.label
        kind, reasons["quantization"] = choose_quantization(options.quantization, device, dtype, shape, free)
        return kind

    def fits(free: int) -> memory.Plan | None:
        stored, precision = own.stored if own else None, precision_of(dtype, quantization)
        return memory.plan(shape, precision, free, options.context, stored=stored) if shape else None

    quantization = quantize(free)
    if options.dtype == "auto" and dtype == torch.float32:
        if quantization != "none":
            # In float32 the cache and the weights that are not quantized take twice as much as the planner counts.
            dtype, reasons["dtype"] = torch.bfloat16, "half the size of float32, beside quantized weights"
        elif (whole := fits(free)) and not whole.roomy:
            dtype, reasons["dtype"] = torch.bfloat16, f"float32 is faster here, but does not fit. {whole.reason}"
    widened = choose_float32_prefill(dtype, device, quantization != "none", shape)
    float32_prefill, reasons["float32_prefill"] = widened
    attention, reasons["attention"] = choose_attention(options.attention, device, dtype)
    context, reasons["context"] = choose_context(options.context, shape)
    if processes > 1:
        tensor_parallel.check(processes, options, device, attention, shape)
        quantization, reasons["quantization"] = "none", "processes can share only exact weights"
        reasons["device"] = f"tensor parallel over {processes} processes, which torchrun started"
    plan = fits(free)
    if plan and plan.mark == "does not fit" and device == "cuda" and processes == 1 and torch.cuda.device_count() > 1:
        free, spread = sum(free_memory(f"cuda:{index}") for index in range(torch.cuda.device_count())), True
        quantization = quantize(free)
        plan = fits(free)
        reasons["device"] = "one GPU is too small: accelerate spreads the layers over all of them"
    if plan and plan.mark == "does not fit":
        raise OutOfMemoryError(f"{plan.reason} Choose a smaller model or precision, or unload the loaded model.")
    if plan and plan.longest_context < plan.context:
        context = plan.longest_context
        reasons["context"] = f"the most that fits beside the weights in {gigabytes(free)}"
    return Placement(device, dtype, quantization, attention, context, float32_prefill, spread, processes, reasons)


def known_shape(config: dict[str, Any]) -> Shape | None:
    """Return the shape of a config.json, or None for an unknown architecture, which can load without a plan."""
    try:
        return Shape.from_config(config)
    except GraniteDemoError:
        return None


def precision_of(dtype: torch.dtype, quantization: str) -> memory.Precision:
    """Return the planner's name for a precision."""
    if quantization == "none":
        return PLANNED[dtype]
    return "int8" if quantization == "int8" else "int4"


def choose_dtype(wanted: str, device: str, borrows_gpu: bool = False) -> tuple[torch.dtype, str]:
    """Return the type of the weights that are not quantized, and why. ``borrows_gpu``: a GPU will compute them."""
    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype, REQUESTED
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16, "this GPU has no bfloat16"
    if device != "cpu" or borrows_gpu:
        return torch.bfloat16, "Granite was trained in this precision"
    exact, narrow = _exact_and_narrow()
    if max(exact.total, narrow.total) > WILD * min(exact.total, narrow.total):
        # Another process may have had the cores for one of the two.
        again = _exact_and_narrow(attempt=1)
        exact, narrow = min(exact, again[0], key=_total), min(narrow, again[1], key=_total)
    reason = f"measured here: a typical message takes {narrow} in bfloat16 and {exact} in float32"
    if narrow.total < WORTH_ROUNDING * exact.total:
        return torch.bfloat16, reason
    return torch.float32, f"{reason}, which is exact; bfloat16 is used if it takes less than {WORTH_ROUNDING} of that"


def _exact_and_narrow(attempt: int = 0) -> tuple[Seconds, Seconds]:
    narrow = (_seconds(torch.bfloat16, in_float32, attempt) for in_float32 in (False, True))
    return _seconds(torch.float32, attempt=attempt), min(narrow, key=_total)


def _total(seconds: Seconds) -> float:
    return seconds.total


def choose_float32_prefill(
    dtype: torch.dtype, device: str, quantized: bool = False, shape: Shape | None = None
) -> tuple[bool, str]:
    """Return whether prompts are computed in float32, and why. Quantized layers compute in their own way."""
    if device != "cpu":
        return False, "a GPU computes in 16 bits"
    if quantized and not (shape and shape.experts):
        return False, "quantized layers are not computed in float32"
    if dtype == torch.float32:
        return False, "the weights are in float32 already"
    narrow, exact = _seconds(dtype).prompt, _seconds(dtype, in_float32=True).prompt
    name = str(dtype).removeprefix("torch.")
    reason = f"measured here: {MESSAGE_PROMPT} tokens take {exact * 1000:.0f} ms, and {narrow * 1000:.0f} ms in {name}"
    return exact < WORTH_ROUNDING * narrow, reason


def _seconds(dtype: torch.dtype, in_float32: bool = False, attempt: int = 0) -> Seconds:
    return measured(dtype, in_float32, torch.get_num_threads(), attempt)


def choose_context(wanted: int | None, shape: Shape | None) -> tuple[int | None, str]:
    """Return the limit of the context without regard to memory, or None for that of the checkpoint, and why."""
    if wanted is None:
        return None, "the checkpoint's own limit"
    if shape is not None and wanted > shape.context_length:
        return None, f"the checkpoint's own limit; {wanted:,} were requested"
    return wanted, REQUESTED


def choose_quantization(
    wanted: str, device: str, dtype: torch.dtype, shape: Shape | None, free: int
) -> tuple[str, str]:
    """Return none, int8, nf4 or fp4, and why. Raises ConfigurationError."""
    if wanted == "none":
        return "none", REQUESTED
    if wanted == "auto" and (device != "cuda" or shape is None):
        why = "bitsandbytes is slow without a CUDA GPU" if device != "cuda" else "the shape of the model is unknown"
        return "none", why
    experts = ""
    if shape is not None and shape.experts:
        experts = "; the experts are not quantized, because bitsandbytes quantizes only linear layers"
    if wanted == "auto" and shape is not None:
        exact = memory.plan(shape, PLANNED[dtype], free)
        if memory.choose_precision(shape, free, exact=PLANNED[dtype]).precision == PLANNED[dtype]:
            return "none", exact.reason
        wanted, why = "nf4", f"{exact.reason} 4-bit weights leave more memory"
    else:
        why = f"requested; bitsandbytes computes in {str(dtype).removeprefix('torch.')}"
    if not is_bitsandbytes_available():
        raise ConfigurationError(f"{wanted} needs bitsandbytes. Run: pip install bitsandbytes")
    if device == "mps":
        raise ConfigurationError(f"{wanted} needs a CUDA GPU or a CPU; bitsandbytes cannot use an Apple GPU here.")
    if device == "cpu":
        how = "multiplies in int8" if wanted == "int8" else "unpacks each weight for every token"
        why = f"requested; on a CPU bitsandbytes {how}, which is slow"
    return wanted, why + experts


FLASH: dict[str, tuple[tuple[int, int], Callable[[], bool]]] = {
    "flash_attention_4": ((9, 0), is_flash_attn_4_available),
    "flash_attention_3": ((9, 0), is_flash_attn_3_available),
    "flash_attention_2": ((8, 0), is_flash_attn_2_available),
}
"""The compute capability that each implementation needs, and whether its package is installed."""


def choose_attention(wanted: str, device: str, dtype: torch.dtype) -> tuple[str, str]:
    """Return transformers' name of the attention implementation, and why. Raises ConfigurationError."""
    missing = {name: flash_problem(name, device, dtype) for name in FLASH}
    if wanted == "auto":
        # Version 4 is a beta: only the user can choose it.
        found = next((name for name in ("flash_attention_3", "flash_attention_2") if not missing[name]), None)
        if found:
            return found, "its package is installed and this GPU supports it"
        return "sdpa", f"torch's own attention; flash_attention_2 is not used: {missing['flash_attention_2']}"
    if problem := missing.get(wanted):
        raise ConfigurationError(f"{wanted} was requested, but {problem}. Choose sdpa.")
    return wanted, REQUESTED


def flash_problem(name: str, device: str, dtype: torch.dtype) -> str:
    """Return why FlashAttention cannot be used, as a clause; empty if it can."""
    if device != "cuda":
        return "it needs a CUDA GPU"
    if dtype == torch.float32:
        return "it does not support float32"
    needed, is_installed = FLASH[name]
    if torch.cuda.get_device_capability() < needed:
        return f"it needs a GPU of compute capability {needed[0]}.{needed[1]} or newer"
    return "" if is_installed() else "its package is not installed"
