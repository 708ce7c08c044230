"""Whether a model fits on a device, as its load decides: the one answer for ``auto`` and the marks of all lists.

A load runs a GGUF file where llama.cpp can, otherwise safetensors. It chooses the file with ``gguf.choose`` and the
precision of safetensors with ``memory.choose_precision``; this module asks the same functions. Uses no network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from granite_demo.errors import OutOfMemoryError
from granite_demo.hub import download
from granite_demo.hub import gguf as hub_gguf
from granite_demo.models import catalogue, memory
from granite_demo.models.catalogue import ModelSpec
from granite_demo.models.devices import DeviceMemory
from granite_demo.models.installation import has_torch


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model fits. ``precision`` is what a load selects, or None."""

    device: str
    precision: str | None
    mark: memory.Mark
    reason: str


def find_fit(
    spec: ModelSpec,
    devices: Sequence[DeviceMemory],
    gguf: bool,
    context: int | None = None,
    hub_cache: Path | None = None,
) -> Fit:
    """Return how ``spec``, which has a shape, fits on the first of ``devices`` that holds it, or on none.

    ``gguf``: this machine runs models from GGUF files by default (``loading.source.why_not``).
    """
    if gguf and runs_gguf(spec, hub_cache):
        return _fit_gguf(spec, devices[-1].free, hub_cache)
    assert spec.shape
    for device in devices:
        quantizes = device.device.startswith("cuda")
        choice = memory.choose_precision(spec.shape, device.free, context, quantizes=quantizes)
        if choice.precision:
            break
    mark = choice.plan.mark if choice.precision else "does not fit"
    return Fit(device.device, choice.precision, mark, choice.reason)


def runs_gguf(spec: ModelSpec, hub_cache: Path | None = None) -> bool:
    """Return whether a load uses a GGUF file of the model: not if only its safetensors files are in the cache."""
    if spec == catalogue.SAMPLE or spec.repo_id is None:
        return spec == catalogue.SAMPLE
    if hub_gguf.is_cached(spec, hub_cache) or not has_torch():
        return True
    return download.cached(spec.repo_id, cache_dir=hub_cache) is None


def _fit_gguf(spec: ModelSpec, free: int, hub_cache: Path | None) -> Fit:
    try:
        file, reason = hub_gguf.choose(spec, hub_gguf.expected_files(spec, hub_cache), free)
    except OutOfMemoryError as error:
        return Fit("cpu", None, "does not fit", str(error))
    return Fit("cpu", file.quantization, "tight" if " tight in " in reason else "fits", f"{reason}.")
