"""Where a model runs: the device, its free memory, and the value of the second stage of opening a model.

This module does not import torch, which takes seconds and which GGUF files do not need. ``placement.py`` places
safetensors.
"""

import os
import platform
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from granite_demo.errors import ConfigurationError
from granite_demo.models.devices import DeviceMemory, count_nvidia_gpus, find_devices
from granite_demo.models.installation import has_torch, require_torch
from granite_demo.types.load_options import LoadOptions, precision_label
from granite_demo.types.model_status import REQUESTED, Chosen, Fact

CONTROL_GROUP = Path("/sys/fs/cgroup")
CPU_WHEEL = "this is llama.cpp's wheel for the CPU; docs/gpus.md says how to install its wheel for CUDA"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a model runs. ``reasons`` has the reason for each chosen field, by its name."""

    device: str
    dtype: Any
    """torch.dtype of the weights that are not quantized; None if llama.cpp selects the types."""
    quantization: str
    """none, int8, nf4 or fp4; for a GGUF file its own name"""
    attention: str
    context: int | None
    """The limit of the context in tokens, or None for the limit of the checkpoint."""
    float32_prefill: bool = False
    """Whether prompts are computed in float32 (``float32_prefill.py``), although the weights are in 16 bits."""
    spread: bool = False
    """Whether accelerate spreads the layers over several GPUs."""
    processes: int = 1
    """The number of processes that each have a part of every layer."""
    reasons: dict[str, str] = field(default_factory=dict)

    def with_reason(self, name: str, reason: str) -> "Placement":
        """Return the same placement with another reason for the field ``name``."""
        return replace(self, reasons={**self.reasons, name: reason})

    @property
    def dtype_name(self) -> str:
        """The type of the weights that are not quantized, such as bfloat16."""
        return str(self.dtype).removeprefix("torch.") if self.dtype else "float32"

    @property
    def label(self) -> str:
        """The precision of the weights, such as bfloat16 or nf4."""
        return precision_label(self.dtype_name, self.quantization)

    @property
    def chosen(self) -> dict[str, Chosen[str]]:
        """The choices for ``ModelSetup``, by the names of its fields."""
        words = f"{self.device}, several GPUs" if self.spread else ""
        if self.processes > 1:
            words = f"{self.device}, {self.processes} processes"
        return {
            "device": Chosen(self.device, self.reasons.get("device", ""), words),
            "precision": Chosen(self.dtype_name, self.reasons.get("dtype", "")),
            "quantization": Chosen(self.quantization, self.reasons.get("quantization", "")),
            "attention": Chosen(self.attention, self.reasons.get("attention", "")),
        }

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The rows for the screen."""
        facts = [chosen.fact(name.capitalize()) for name, chosen in self.chosen.items()]
        if self.float32_prefill:
            facts.insert(2, ("Prompts", "computed in float32", self.reasons["float32_prefill"]))
        return tuple(facts)


def choose_device(options: LoadOptions) -> Chosen[str]:
    """Return the device for a model that is not a GGUF file. Raises ConfigurationError."""
    wanted, kind = options.device, options.engine_kind
    if kind and kind.borrows_gpu:
        return Chosen("cpu", "the GPU is only for the process that writes an answer")
    if wanted in ("auto", "cpu") and not _may_have_gpu():
        return Chosen("cpu", REQUESTED if wanted == "cpu" else "no GPU was found")
    if not has_torch():
        return _choose_without_torch(wanted)
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted != "auto":
        if not available[wanted]:
            found = ", ".join(device for device, present in available.items() if present)
            raise ConfigurationError(f"Device {wanted} was requested, but torch finds only: {found}.")
        return Chosen(wanted, REQUESTED)
    if available["cuda"]:
        return Chosen("cuda", f"a GPU was found: {torch.cuda.get_device_name()}")
    if available["mps"]:
        return Chosen("mps", "an Apple GPU was found")
    return Chosen("cpu", "this torch is built without CUDA" if torch.version.cuda is None else "no GPU was found")


def _choose_without_torch(wanted: str) -> Chosen[str]:
    if wanted in ("auto", "mps") and _is_apple():
        return Chosen("mps", REQUESTED if wanted == "mps" else "an Apple GPU was found")
    if wanted != "cpu":
        require_torch(f"The device {wanted}")
    return Chosen("cpu", REQUESTED)


def _may_have_gpu() -> bool:
    """Return whether torch has to be asked for a GPU, which takes seconds to import."""
    return _is_apple() or any(device.device.startswith("cuda") for device in find_devices())


def _is_apple() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


def free_memory(device: str) -> int:
    """Return the free bytes of ``device`` now."""
    if device.startswith("cuda"):
        import torch

        # Memory that torch keeps from earlier models is also free.
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def cores(control: Path = CONTROL_GROUP) -> int:
    """Return the processor cores that this process may use: more threads than that wait for each other."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return within_quota(min(allowed, psutil.cpu_count(logical=False) or allowed), control)


def within_quota(count: int, control: Path = CONTROL_GROUP) -> int:
    """Return ``count`` cores, or what the processor time of this container is worth if that is less; at least 1."""
    try:
        quota, period = (control / "cpu.max").read_text(encoding="ascii").split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups, or "max"
        return max(1, count)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` means that a GPU or the main memory is full."""
    # On a CPU torch raises a plain RuntimeError: "DefaultCPUAllocator: can't allocate memory".
    words = ("out of memory", "allocate memory", "not enough memory")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(word in str(error).lower() for word in words)
    )


def place_gguf(options: LoadOptions, device: str, gpu: DeviceMemory | None = None) -> Placement:
    """Return the placement of a GGUF file. ``load_gguf`` adds what only the file says: precision and context.

    ``device`` is that of ``choose_device``; ``gpu`` is the NVIDIA GPU that llama.cpp can use.
    """
    if device == "mps":
        reason = "all layers on Apple's GPU"
    elif options.device == "cpu":
        device, reason = "cpu", REQUESTED
    elif gpu:
        device, reason = "cuda", f"all layers on {gpu.title}"
    elif count_nvidia_gpus():
        device, reason = "cpu", f"there is an NVIDIA GPU, but {CPU_WHEEL}"
    else:
        device, reason = "cpu", "no GPU was found"
    reasons = {
        "device": reason,
        "dtype": "of the logits; llama.cpp selects the type that suits the weights",
        "quantization": "the file's own",
        "attention": "its own",
        "context": REQUESTED if options.context else "the file's own limit",
    }
    return Placement(device, None, "GGUF", "llama.cpp", options.context, reasons=reasons)
