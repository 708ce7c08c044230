"""The first stage of opening a model: which model, and which of its files.

The files depend on the device, which ``placement.choose_device`` chooses before. Imports no engine.
"""

import ctypes
import platform
import sys
import threading
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from granite_demo.errors import (
    ConfigurationError,
    GraniteDemoError,
    LoadCancelledError,
    OutOfMemoryError,
    UnknownModelError,
)
from granite_demo.hub import download, sample
from granite_demo.hub import gguf as hub_gguf
from granite_demo.hub.repository import describe
from granite_demo.loading.device import free_memory
from granite_demo.models import catalogue, registry
from granite_demo.models.catalogue import ModelSpec
from granite_demo.models.devices import DeviceMemory, find_devices
from granite_demo.models.installation import has_torch, require_torch
from granite_demo.types.engine_kinds import ENGINES, GGUF
from granite_demo.types.load_options import LoadOptions, Report
from granite_demo.types.model_status import REQUESTED

OPENMP = "libgomp.so.1"


@dataclass(frozen=True, slots=True)
class Source:
    """The files of a model on this machine."""

    spec: ModelSpec
    folder: Path
    """Contains the safetensors files. With a GGUF file it can contain only the tokenizer, or be missing."""
    commit: str | None = None
    """The commit in the hub repository, if the files are from the hub."""
    chosen_because: str = ""
    """Why this model was chosen, if the user did not name one."""
    gguf: Path | None = None
    """The GGUF file to load instead of the safetensors files."""
    gguf_because: str = ""
    """Why the GGUF file is loaded, or why not if the model has one."""


def find_source(
    cache_dir: Path,
    options: LoadOptions,
    device: str,
    report: Report,
    cancelled: threading.Event,
    processes: int = 1,
    without: frozenset[str] = frozenset(),
) -> Source:
    """Return the files of the model for ``device``, and download them if they are missing.

    Several ``processes`` get safetensors files. ``auto`` does not choose the models ``without``. Raises
    ConfigurationError if the requested engine cannot run these files, LoadCancelledError, and the errors of a download.
    """
    because = ""
    if options.model == "auto":
        name, because = _choose_model(cache_dir, device, not why_not(options, device), without)
        options = replace(options, model=name)
    spec, kind = registry.resolve(options.model), options.engine_kind
    options = replace(options, revision=options.revision or spec.revision)
    if spec.repo_id and spec.name not in catalogue.MODELS:
        spec = describe(spec, options.revision, report, cancelled).spec
    requested, refused = kind is not None and kind.reads_gguf, ""
    if spec.path and (file := hub_gguf.file_in(spec.path)):
        if kind and not requested:
            names = " or ".join(kind.name for kind in ENGINES.values() if kind.reads_gguf)
            raise ConfigurationError(
                f"{file.name} is a GGUF file, which only the engine {names} can run. Use that engine or auto."
            )
        if missing := no_llama():
            raise ConfigurationError(f"{file.name} cannot run here: {missing}.")
        _refuse_precision(options, file.name)
        return Source(spec, file.parent, None, because, file, "the model is a GGUF file")
    if processes == 1 and (spec == catalogue.SAMPLE or spec.repo_id):
        if requested:
            _refuse_precision(options, f"The model for the engine {kind}")
        refused = "" if requested else why_not(options, device)
        found = refused or _find_gguf(cache_dir, spec, requested, report, cancelled)
        if isinstance(found, Source):
            return replace(found, chosen_because=because)
        refused = found
    elif requested:
        raise ConfigurationError(f"{spec.title} has no GGUF file here. Use the path of a GGUF file as the model.")
    require_torch(_needs_torch(options, spec, processes))
    source = find_safetensors(cache_dir, spec, options.revision, report, cancelled)
    return replace(source, chosen_because=because, gguf_because=refused)


def find_safetensors(
    cache_dir: Path, spec: ModelSpec, revision: str | None, report: Report, cancelled: threading.Event
) -> Source:
    """Return the safetensors files of the model, and download them if they are missing. Raises as a download does."""
    if spec.path:
        return Source(spec, spec.path)
    if spec.repo_id:
        checkpoint = download.fetch(spec.repo_id, revision, report, cancelled)
        return Source(spec, checkpoint.folder, checkpoint.commit)
    return Source(spec, sample.ensure_sample(cache_dir, report, cancelled))


def check_torch(options: LoadOptions) -> None:
    """Raise ConfigurationError if the options name an engine that needs torch, and torch is not installed."""
    if options.engine_kind and not options.engine_kind.reads_gguf:
        require_torch(f"The engine {options.engine_kind}")


def _needs_torch(options: LoadOptions, spec: ModelSpec, processes: int) -> str:
    """Return what needs torch, as the subject of a sentence."""
    for name in ("engine", "dtype", "quantization", "attention"):
        if getattr(options, name) != "auto":
            return f"The {name} {getattr(options, name)}"
    if processes > 1:
        return "A model in several processes"
    if options.revision:
        return f"The revision {options.revision}"
    missing = "" if spec.path else no_llama()
    return f"{missing[0].upper()}{missing[1:]}. {spec.title}" if missing else f"{spec.title} in safetensors files"


def why_not(options: LoadOptions, device: str) -> str:
    """Return why ``auto`` does not use the GGUF file of a model, as a clause; empty if it does."""
    if options.engine_kind:
        return "another engine was requested"
    if options.revision is not None:
        return "a revision was requested, and only the safetensors files have revisions"
    if device == "cuda":
        return "there is an NVIDIA GPU"
    if (options.dtype, options.quantization, options.attention) != ("auto", "auto", "auto"):
        return "a precision or attention of torch was requested"
    return no_llama()


def no_llama() -> str:
    """Return why llama.cpp cannot run on this machine, as a clause; empty if it can."""
    if find_spec("xllamacpp") is None:
        return "llama.cpp is missing: xllamacpp is not installed, or has no wheel for this platform"
    if not has_avx2():
        return "this processor has no AVX2, which xllamacpp's wheels need"
    if not has_openmp():
        return f"llama.cpp needs the library {OPENMP} (Debian and Ubuntu: apt install libgomp1)"
    return ""


def has_openmp() -> bool:
    """Return whether the system has the library of OpenMP that xllamacpp's wheels for Linux need."""
    try:
        return sys.platform != "linux" or bool(ctypes.CDLL(OPENMP))
    except OSError:
        return False


def has_avx2(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the processor has AVX2, or needs none. True where the system does not say it in ``cpuinfo``."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return True
    try:
        flags = [line.split() for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith("flags")]
    except OSError:
        return True
    return not flags or "avx2" in flags[0]


def check_cache_folders(cache_dir: Path, options: LoadOptions) -> None:
    """Raise ConfigurationError if the model must be downloaded and the cache folder is read-only.

    The start then fails at once, instead of a page that never gets its model.
    """
    if options.model == "auto":
        hub_models = [spec for spec in catalogue.MODELS.values() if spec.repo_id]
        if not any(hub_gguf.is_cached(spec) or download.cached(spec.repo_id or "") for spec in hub_models):
            sample.check_writable(cache_dir)
        return
    spec = registry.resolve(options.model)
    if spec == catalogue.SAMPLE:
        sample.check_writable(cache_dir)
    elif spec.repo_id and not spec.path and not hub_gguf.is_cached(spec):
        download.check_writable(spec.repo_id, options.revision or spec.revision)


def _find_gguf(
    cache_dir: Path, spec: ModelSpec, requested: bool, report: Report, cancelled: threading.Event
) -> Source | str:
    """Return the GGUF file of the sample or of a hub model, or why it is not used.

    What is in the cache comes first: the GGUF file, unless it does not fit, then safetensors. If both are missing,
    downloads the GGUF file. Raises OutOfMemoryError if none fits, and the errors of a download if the user requested
    the file (``requested``) or torch is not installed.
    """
    if requested and (missing := no_llama()):
        raise ConfigurationError(f"{spec.title} cannot run as a GGUF file here: {missing}.")
    if spec == catalogue.SAMPLE:
        file = sample.ensure_gguf(cache_dir, report, cancelled)
        return Source(spec, file.parent, gguf=file, gguf_because=REQUESTED if requested else hub_gguf.FASTER)
    free = free_memory("cpu")
    if (found := hub_gguf.cached_file(spec, free)) is None:
        if not requested and has_torch() and download.cached(spec.repo_id or ""):
            return (
                f"the safetensors files are in the hub cache; the engine {GGUF} is {hub_gguf.FASTER}, after a download"
            )
        try:
            found = hub_gguf.fetch(spec, free, report, cancelled)
        except (LoadCancelledError, OutOfMemoryError):
            raise
        except GraniteDemoError as error:
            if requested:
                raise
            if isinstance(error, UnknownModelError):
                return f"the hub has none in {spec.gguf_repo}, so it is the safetensors files"
            if not has_torch():
                raise
            return f"the download failed: {error}"
    because = f"{REQUESTED}; {found.reason}" if requested else found.reason
    return Source(spec, hub_gguf.tokenizer_folder(spec) or found.path.parent, gguf=found.path, gguf_because=because)


def _choose_model(cache_dir: Path, device: str, gguf: bool, without: frozenset[str]) -> tuple[str, str]:
    from granite_demo.hub.default_model import choose_model

    return choose_model(cache_dir, with_all_gpus(device, free_memory(device)), gguf, without=without)


def with_all_gpus(device: str, free: int) -> list[DeviceMemory]:
    """Return where a load on ``device`` puts a model: there, or on all GPUs together if it does not fit there."""
    one = DeviceMemory(device, device, free)
    together = [found for found in find_devices() if found.device == "cuda"] if device == "cuda" else []
    return [one, *together]


def _refuse_precision(options: LoadOptions, name: str) -> None:
    """Raise ConfigurationError for options that would change the answers and that llama.cpp does not have."""
    given = [key for key in ("dtype", "quantization", "attention") if getattr(options, key) != "auto"]
    given += ["revision"] if options.revision else []
    if given:
        raise ConfigurationError(
            f"{name} is a GGUF file, which has its own precision, and llama.cpp its own attention. Leave out "
            f"{' and '.join(given)}, or use the safetensors files."
        )
