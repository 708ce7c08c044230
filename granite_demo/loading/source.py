"""The first stage of opening a model: which model, and the files on this machine that it is loaded from.

Knows no engine beyond the table in ``types/engine_kinds.py``. Which files are taken depends on the device, so that is
an argument: ``placement.choose_device`` chooses it.
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
from granite_demo.types.model_status import ASKED


@dataclass(frozen=True, slots=True)
class Source:
    """The files of a model on this machine."""

    spec: ModelSpec
    folder: Path
    """Has the safetensors. Beside a GGUF file it may have nothing but the tokenizer, or not exist."""
    commit: str | None = None
    """The commit of the hub's repository that ``folder`` has."""
    chosen_because: str = ""
    """Why this model was chosen, where the user named none."""
    gguf: Path | None = None
    """The GGUF file to load instead of the safetensors."""
    gguf_because: str = ""
    """Why the GGUF file is loaded or, where the model has one, why it is not."""


def find_source(
    cache_dir: Path,
    options: LoadOptions,
    device: str,
    report: Report,
    cancelled: threading.Event,
    processes: int = 1,
) -> Source:
    """Find the files of the model for ``device``, and fetch them where they are missing.

    Several processes cannot share a GGUF file. Raises ConfigurationError for an engine that cannot run these files,
    LoadCancelledError, and what fetching raises.
    """
    because = ""
    if options.model == "auto":
        name, because = _choose_model(cache_dir, device)
        options = replace(options, model=name)
    spec, kind = registry.resolve(options.model), options.engine_kind
    asked, refused = kind is not None and kind.reads_gguf, ""
    if spec.path and (file := hub_gguf.file_in(spec.path)):
        if kind and not asked:
            names = " or ".join(kind.name for kind in ENGINES.values() if kind.reads_gguf)
            raise ConfigurationError(
                f"{file.name} is a GGUF file, which only the engine {names} runs. Choose that or auto."
            )
        return Source(spec, file.parent, None, because, file, "the model is a GGUF file")
    if processes == 1 and (spec == catalogue.SAMPLE or spec.repo_id):
        refused = "" if asked else why_not(options, device)
        found = refused or _find_gguf(cache_dir, spec, asked, report, cancelled)
        if isinstance(found, Source):
            return replace(found, chosen_because=because)
        refused = found
    elif asked:
        raise ConfigurationError(f"{spec.title} has no GGUF file here. Give the path of one as the model.")
    source = find_safetensors(cache_dir, spec, options.revision, report, cancelled)
    return replace(source, chosen_because=because, gguf_because=refused)


def find_safetensors(
    cache_dir: Path, spec: ModelSpec, revision: str | None, report: Report, cancelled: threading.Event
) -> Source:
    """The model's checkpoint of safetensors, fetched where it is missing. Raises what fetching raises."""
    if spec.path:
        return Source(spec, spec.path)
    if spec.repo_id:
        checkpoint = download.fetch(spec.repo_id, revision, report, cancelled)
        return Source(spec, checkpoint.folder, checkpoint.commit)
    return Source(spec, sample.ensure_sample(cache_dir, report, cancelled))


def why_not(options: LoadOptions, device: str, installed: Callable[[], bool] = llama_cpp.is_installed) -> str:
    """Why ``auto`` does not take a model's GGUF file, as half a sentence, or nothing."""
    if options.engine_kind:
        return "another engine was asked for"
    if options.revision is not None:
        return "a revision was asked for, which is one of the safetensors"
    if device != "cpu":
        return "there is a GPU"
    if (options.dtype, options.quantization, options.attention) != ("auto", "auto", "auto"):
        return "a precision or attention of torch was asked for"
    if not installed():
        return f"llama-cpp-python is not installed; it is several times as fast on a CPU: {llama_cpp.INSTALL}"
    return ""


def check_cache_folders(cache_dir: Path, options: LoadOptions) -> None:
    """Raise ConfigurationError where the model has to be fetched and nothing can be written.

    So the start fails, instead of a page that never gets its model.
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
    cache_dir: Path, spec: ModelSpec, asked: bool, report: Report, cancelled: threading.Event
) -> Source | str:
    """The GGUF file of the sample or of a model of the hub, fetched where it is missing; or why it is not taken.

    Raises what fetching raises where the file was ``asked`` for.
    """
    because = ASKED if asked else hub_gguf.FASTER
    if spec == catalogue.SAMPLE:
        file = sample.ensure_gguf(cache_dir, report, cancelled)
        return Source(spec, cache_dir / sample.FOLDER, gguf=file, gguf_because=because)
    if (cached := hub_gguf.cached_file(spec)) is None:
        if not asked and download.cached(spec.repo_id or ""):
            fetch = hub_gguf.how_to_fetch(spec)
            return f"the safetensors are in the hub's cache already; it is several times as fast on a CPU: {fetch}"
        try:
            cached = hub_gguf.fetch(spec, report, cancelled)
        except LoadCancelledError:
            raise
        except GraniteDemoError as error:
            if asked:
                raise
            return f"it could not be fetched: {error}"
    return Source(spec, hub_gguf.tokenizer_folder(spec) or cached.parent, gguf=cached, gguf_because=because)


def _choose_model(cache_dir: Path, device: str) -> tuple[str, str]:
    from granite_demo.hub.default_model import choose_model
    from granite_demo.loading.placement import free_memory

    return choose_model(cache_dir, free_memory(device), device != "cpu")
