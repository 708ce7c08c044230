"""The first stage of opening a model: which model, and which of its files.

The files depend on the device, which ``placement.choose_device`` chooses before. Imports no engine.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from granite_demo.errors import ConfigurationError, GraniteDemoError, LoadCancelledError
from granite_demo.hub import download, sample
from granite_demo.hub import gguf as hub_gguf
from granite_demo.loading import llama_cpp
from granite_demo.models import catalogue, registry
from granite_demo.models.catalogue import ModelSpec
from granite_demo.types.engine_kinds import ENGINES
from granite_demo.types.load_options import LoadOptions, Report
from granite_demo.types.model_status import REQUESTED


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
) -> Source:
    """Return the files of the model for ``device``, and download them if they are missing.

    Several ``processes`` get safetensors files. Raises ConfigurationError if the requested engine cannot run these
    files, LoadCancelledError, and the errors of a download.
    """
    because = ""
    if options.model == "auto":
        name, because = _choose_model(cache_dir, device)
        options = replace(options, model=name)
    spec, kind = registry.resolve(options.model), options.engine_kind
    requested, refused = kind is not None and kind.reads_gguf, ""
    if spec.path and (file := hub_gguf.file_in(spec.path)):
        if kind and not requested:
            names = " or ".join(kind.name for kind in ENGINES.values() if kind.reads_gguf)
            raise ConfigurationError(
                f"{file.name} is a GGUF file, which only the engine {names} can run. Use that engine or auto."
            )
        return Source(spec, file.parent, None, because, file, "the model is a GGUF file")
    if processes == 1 and (spec == catalogue.SAMPLE or spec.repo_id):
        refused = "" if requested else why_not(options, device)
        found = refused or _find_gguf(cache_dir, spec, requested, report, cancelled)
        if isinstance(found, Source):
            return replace(found, chosen_because=because)
        refused = found
    elif requested:
        raise ConfigurationError(f"{spec.title} has no GGUF file here. Use the path of a GGUF file as the model.")
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


def why_not(options: LoadOptions, device: str, installed: Callable[[], bool] = llama_cpp.is_installed) -> str:
    """Return why ``auto`` does not use the GGUF file of a model, as a clause; empty if it does."""
    if options.engine_kind:
        return "another engine was requested"
    if options.revision is not None:
        return "a revision was requested, and only the safetensors files have revisions"
    if device != "cpu":
        return "there is a GPU"
    if (options.dtype, options.quantization, options.attention) != ("auto", "auto", "auto"):
        return "a precision or attention of torch was requested"
    if not installed():
        return f"llama-cpp-python is not installed; it is several times faster on a CPU: {llama_cpp.INSTALL}"
    return ""


def check_cache_folders(cache_dir: Path, options: LoadOptions) -> None:
    """Raise ConfigurationError if the model must be downloaded and the cache folder is read-only.

    The start then fails at once, instead of a page that never gets its model.
    """
    if options.model == "auto":
        if not any(spec.repo_id and download.cached(spec.repo_id) for spec in catalogue.MODELS.values()):
            sample.check_writable(cache_dir)
        return
    spec = registry.resolve(options.model)
    if spec == catalogue.SAMPLE:
        sample.check_writable(cache_dir)
    elif spec.repo_id and not spec.path:
        download.check_writable(spec.repo_id, options.revision)


def _find_gguf(
    cache_dir: Path, spec: ModelSpec, requested: bool, report: Report, cancelled: threading.Event
) -> Source | str:
    """Return the GGUF file of the sample or of a hub model, or why it is not used. Downloads it if it is missing.

    Raises the errors of a download if the user requested the file (``requested``).
    """
    because = REQUESTED if requested else hub_gguf.FASTER
    if spec == catalogue.SAMPLE:
        file = sample.ensure_gguf(cache_dir, report, cancelled)
        return Source(spec, cache_dir / sample.FOLDER, gguf=file, gguf_because=because)
    if (cached := hub_gguf.cached_file(spec)) is None:
        if not requested and download.cached(spec.repo_id or ""):
            fetch = hub_gguf.how_to_fetch(spec)
            return f"the safetensors files are in the hub cache; GGUF is several times faster on a CPU: {fetch}"
        try:
            cached = hub_gguf.fetch(spec, report, cancelled)
        except LoadCancelledError:
            raise
        except GraniteDemoError as error:
            if requested:
                raise
            return f"the download failed: {error}"
    return Source(spec, hub_gguf.tokenizer_folder(spec) or cached.parent, gguf=cached, gguf_because=because)


def _choose_model(cache_dir: Path, device: str) -> tuple[str, str]:
    from granite_demo.hub.default_model import choose_model
    from granite_demo.loading.placement import free_memory

    return choose_model(cache_dir, free_memory(device), device != "cpu")
