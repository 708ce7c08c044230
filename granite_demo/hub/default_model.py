"""Chooses the model for ``auto``.

It is the last model that was used, otherwise the largest Granite model in the cache that fits, otherwise the sample.
This does not use the network.
"""

from collections.abc import Sequence
from pathlib import Path

from granite_demo.errors import UnknownModelError
from granite_demo.hub import download
from granite_demo.hub import gguf as hub_gguf
from granite_demo.hub.fit import find_fit
from granite_demo.models import catalogue, registry
from granite_demo.models.catalogue import ModelSpec
from granite_demo.models.config import count_parameters
from granite_demo.models.devices import DeviceMemory
from granite_demo.models.installation import has_torch
from granite_demo.types.model_status import gigabytes

LAST_MODEL = "last-model"
OFFERED = "granite-4.0-350m"
CPU_PARAMETERS = 4_000_000_000
"""The largest model that is chosen for a CPU. Larger models generate less than one word per second there."""


def choose_model(
    cache_dir: Path,
    devices: Sequence[DeviceMemory],
    gguf: bool,
    hub_cache: Path | None = None,
    without: frozenset[str] = frozenset(),
) -> tuple[str, str]:
    """Return (name, reason). ``devices``: where a model can run. ``hub_cache`` None: that of huggingface_hub.

    With ``gguf``, models run from GGUF files, so those in the cache count, too. The models ``without`` did not fit.
    """
    last = last_model(cache_dir)
    if last and is_here(last, gguf, hub_cache) and registry.resolve(last).name not in without:
        return last, "the last model used here"
    granites = [
        spec for spec in catalogue.MODELS.values() if spec.repo_id and spec.instruct and spec.name not in without
    ]
    best = max((spec for spec in granites if _suits(spec, devices, gguf, hub_cache)), key=_size, default=None)
    if best is not None:
        smaller = f"; {' and '.join(sorted(without))} did not fit" if without else ""
        return best.name, f"the largest IBM Granite model in the cache that fits here{smaller}"
    offered = catalogue.MODELS[OFFERED]
    assert offered.shape is not None
    bits = 8.5 if gguf else 16  # of Q8_0 or bfloat16
    size = gigabytes(int(count_parameters(offered.shape).total * bits / 8))
    why = "no IBM Granite model in the cache fits here" if without else "no IBM Granite model is in the cache"
    return catalogue.SAMPLE.name, f"{why}. Load one under Settings, for example {OFFERED}, a download of {size}"


def last_model(cache_dir: Path) -> str | None:
    """Return the name of the last model that was used, or None."""
    try:
        return (cache_dir / LAST_MODEL).read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def remember_model(cache_dir: Path, name: str) -> None:
    """Store ``name`` for the next start. If the cache is not writable, nothing happens."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        (cache_dir / LAST_MODEL).write_text(name, encoding="utf-8")
    except OSError:
        pass


def is_here(name: str, gguf: bool, hub_cache: Path | None) -> bool:
    """Return whether the files of the model are on this machine; ``gguf``: a GGUF file is enough. No network."""
    try:
        spec = registry.resolve(name)
    except UnknownModelError:
        return False
    if spec.repo_id is None or (gguf and hub_gguf.is_cached(spec, hub_cache)):
        return True
    return has_torch() and download.cached(spec.repo_id, cache_dir=hub_cache) is not None


def _suits(spec: ModelSpec, devices: Sequence[DeviceMemory], gguf: bool, hub_cache: Path | None) -> bool:
    on_cpu = devices[-1].device == "cpu" and len(devices) == 1
    if spec.shape is None or (on_cpu and _size(spec) > CPU_PARAMETERS):
        return False
    return (
        is_here(spec.name, gguf, hub_cache) and find_fit(spec, devices, gguf, hub_cache=hub_cache).precision is not None
    )


def _size(spec: ModelSpec) -> int:
    return count_parameters(spec.shape).total if spec.shape else 0
