"""Which files a model is loaded from, and why. Knows no engine."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from granite_demo.errors import (
    ConfigurationError,
    GraniteDemoError,
    LoadCancelledError,
)
from granite_demo.hub import download, sample
from granite_demo.hub import gguf as hub_gguf
from granite_demo.loading import llama_cpp
from granite_demo.loading.tensor_parallel import ALONE, Group
from granite_demo.models import catalogue, registry
from granite_demo.models.catalogue import ModelSpec
from granite_demo.types.load_options import LoadOptions, Report
from granite_demo.types.model_status import ASKED


def why_not(options: LoadOptions, device: str, installed: Callable[[], bool] = llama_cpp.is_installed) -> str:
    """Why ``auto`` does not take a model's GGUF file, as half a sentence, or nothing."""
    if options.engine != "auto":
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


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint on this machine."""

    spec: ModelSpec
    folder: Path
    commit: str | None
    why: str
    gguf: Path | None = None
    """The GGUF file to load, rather than the safetensors in ``folder``."""
    engine_why: str = ""
    """Why it is, or on a CPU why there is none."""


def check_cache_folders(cache_dir: Path, options: LoadOptions) -> None:
    """Raise ConfigurationError where the model would have to be fetched and nothing can be written.

    So that a start says so, not a page that never gets its model.
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


def _find(
    cache_dir: Path, options: LoadOptions, report: Report, cancelled: threading.Event, group: Group = ALONE
) -> Found:
    why = ""
    if options.model == "auto":
        name, why = _choose(cache_dir, options)
        options = replace(options, model=name)
    spec = registry.resolve(options.model)
    problem = ""
    if spec.path and (file := hub_gguf.file_in(spec.path)):
        if options.engine not in ("auto", "gguf"):
            raise ConfigurationError(
                f"{file.name} is a GGUF file, which only the engine gguf runs. Choose that or auto."
            )
        return Found(spec, file.parent, None, why, file, "the model is a GGUF file")
    if spec == catalogue.SAMPLE and group.size == 1:
        if options.engine != "gguf":
            problem = why_not(options, _device(options))
        if not problem:
            file = sample.ensure_gguf(cache_dir, report, cancelled)
            reason = ASKED if options.engine == "gguf" else hub_gguf.FASTER
            return Found(spec, cache_dir / sample.FOLDER, None, why, file, reason)
    elif spec.repo_id and group.size == 1:
        found = _gguf_of_the_hub(spec, options, report, cancelled, why)
        if isinstance(found, Found):
            return found
        problem = found
    elif options.engine == "gguf":
        raise ConfigurationError(f"{spec.title} has no GGUF file here. Give the path of one as the model.")
    return _safetensors(spec, cache_dir, options, report, cancelled, why, problem)


def _safetensors(
    spec: ModelSpec,
    cache_dir: Path,
    options: LoadOptions,
    report: Report,
    cancelled: threading.Event,
    why: str,
    problem: str,
) -> Found:
    """The model's checkpoint, fetched where it has to be; ``problem`` is why it is not its GGUF file."""
    commit = None
    if spec.path:
        folder = spec.path
    elif spec.repo_id:
        checkpoint = download.fetch(spec.repo_id, options.revision, report, cancelled)
        folder, commit = checkpoint.folder, checkpoint.commit
    else:
        folder = sample.ensure_sample(cache_dir, report, cancelled)
    return Found(spec, folder, commit, why, engine_why=problem)


def _gguf_of_the_hub(
    spec: ModelSpec, options: LoadOptions, report: Report, cancelled: threading.Event, why: str
) -> Found | str:
    """The model by its GGUF file, fetched where it has to be, or why that is not taken."""
    asked, file = options.engine == "gguf", hub_gguf.cached_file(spec)
    if not asked and (problem := why_not(options, _device(options))):
        return problem
    if file is None:
        if not asked and download.cached(spec.repo_id or ""):
            fetch = hub_gguf.how_to_fetch(spec)
            return f"the safetensors are in the hub's cache already; it is several times as fast on a CPU: {fetch}"
        try:
            file = hub_gguf.fetch(spec, report, cancelled)
        except LoadCancelledError:
            raise
        except GraniteDemoError as error:
            if asked:
                raise
            return f"it could not be fetched: {error}"
    folder = hub_gguf.tokenizer_folder(spec) or file.parent
    return Found(spec, folder, None, why, file, ASKED if asked else hub_gguf.FASTER)


def _device(options: LoadOptions) -> str:
    from granite_demo.loading.placement import choose_device

    return choose_device(options.device)[0]


def _choose(cache_dir: Path, options: LoadOptions) -> tuple[str, str]:
    from granite_demo.hub.default_model import choose_model
    from granite_demo.loading.placement import choose_device, free_memory

    device, _ = choose_device(options.device)
    return choose_model(cache_dir, free_memory(device), device != "cpu")
