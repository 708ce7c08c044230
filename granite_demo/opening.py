"""Opens a model: finds or fetches its files, places and loads it, starts and warms up its engine.

The real ``Loader`` of the model manager. torch is imported here when the first model is loaded, not before.
"""

import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from granite_demo import gguf_files, hub, registry, sample
from granite_demo.constraints import prepare
from granite_demo.errors import (
    ConfigurationError,
    CorruptModelError,
    GraniteDemoError,
    InvalidRequestError,
    LoadCancelledError,
)
from granite_demo.manager import ReadyModel
from granite_demo.registry import ModelSpec
from granite_demo.status import Fact, LoadOptions, LoadStage, Report
from granite_demo.tensor_parallel import ALONE, Group

if TYPE_CHECKING:
    from granite_demo.loading import LoadedModel


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


def open_model(
    cache_dir: Path,
    threads: int,
    options: LoadOptions,
    report: Report,
    cancelled: threading.Event,
    *,
    ignore_ends: bool = False,
    fuse: bool = True,
    group: Group = ALONE,
) -> ReadyModel:
    """Make a model ready. Raises what fetching and loading raise, and LoadCancelledError once ``cancelled`` is set.

    With ``ignore_ends`` no token ends an answer, and without ``fuse`` transformers computes the layers: to measure
    answers of one length, and that. The processes of ``group`` share the model; only the first of them downloads.
    """
    if options.engine == "zerogpu":  # the GPU is not here: another process gets it
        dtype = "bfloat16" if options.dtype == "auto" else options.dtype
        options = replace(options, device="cpu", dtype=dtype)
    group.join()
    found = group.from_first(lambda: _find(cache_dir, options, report, cancelled, group))
    report("loading", None, "")
    import torch

    from granite_demo.engine.create import create_engine
    from granite_demo.engine.sampling import compile_chooser

    # torchrun has shared the cores among the processes.
    machine = _set_threads(threads, options) if threads or group.size == 1 else ()
    compiling = threading.Thread(target=compile_chooser, args=(torch.device("cuda", group.local_rank),), daemon=True)
    if torch.cuda.is_available() and options.device in ("auto", "cuda") and not found.gguf:
        compiling.start()  # beside the loading, which mostly waits for the disk
    try:
        loaded = _load(found, options, report, cancelled, cache_dir, group)
    except CorruptModelError as error:
        if not (found.gguf and found.spec.repo_id) or options.engine == "gguf":
            raise
        found = _safetensors(found.spec, cache_dir, options, report, cancelled, found.why, str(error))
        loaded = _load(found, options, report, cancelled, cache_dir, group)
    if found.engine_why and not found.gguf:
        machine += (("GGUF file", "not used", found.engine_why),)
    loaded = replace(loaded, machine=machine)
    if compiling.ident:
        compiling.join()
    if ignore_ends:
        loaded = replace(loaded, eos_ids=frozenset())
    else:
        # Up to a second in which nothing else runs: better now than in somebody's answer.
        with suppress(InvalidRequestError):
            prepare(loaded.tokenizer, loaded.eos_ids)
    engine = create_engine(loaded, options.engine, options.compile, report, group, fuse)
    if cancelled.is_set():
        engine.close()
        raise LoadCancelledError("The load was cancelled.")
    if options.compile and not any(name == "Compiled" for name, *_ in engine.facts):
        fact = ("Compiled", "no", "asked for, but only the batching engine compiles its steps")
        loaded = replace(loaded, machine=(*loaded.machine, fact))
    return ReadyModel(loaded, engine)


def check_places(cache_dir: Path, options: LoadOptions) -> None:
    """Raise ConfigurationError where the model would have to be fetched and nothing can be written.

    So that a start says so, not a page that never gets its model.
    """
    if options.model == "auto":
        if not any(spec.repo_id and hub.cached(spec.repo_id) for spec in registry.MODELS.values()):
            sample.check_place(cache_dir)
        return
    spec = registry.resolve(options.model)
    if spec == registry.SAMPLE:
        sample.check_place(cache_dir)
    elif spec.repo_id and not spec.path:
        hub.check_place(spec.repo_id, options.revision)


def _load(
    found: Found, options: LoadOptions, report: Report, cancelled: threading.Event, cache_dir: Path, group: Group
) -> "LoadedModel":
    from granite_demo.loading import load_model

    if found.gguf:
        loaded = gguf_files.load_gguf(
            found.gguf,
            found.spec,
            options,
            report,
            cancelled.is_set,
            engine_why=found.engine_why,
            checkpoint=found.folder if found.folder.is_dir() else None,
        )
        return replace(loaded, why=found.why)
    return load_model(
        found.folder,
        found.spec,
        options,
        report,
        cancelled,
        commit=found.commit,
        why=found.why,
        copies=cache_dir,
        group=group,
    )


def follow(cache_dir: Path, threads: int, options: LoadOptions, group: Group) -> None:
    """Load this process's part of the model, and compute along with the first process until it stops."""
    with group.together():
        ready = open_model(cache_dir, threads, options, _silent, threading.Event(), group=group)
    from granite_demo.engine.batching import BatchingEngine

    assert isinstance(ready.engine, BatchingEngine)
    ready.engine.follow()
    group.leave()


def _silent(stage: LoadStage, fraction: float | None, detail: str) -> None:
    pass


def _find(
    cache_dir: Path, options: LoadOptions, report: Report, cancelled: threading.Event, group: Group = ALONE
) -> Found:
    why = ""
    if options.model == "auto":
        name, why = _choose(cache_dir, options)
        options = replace(options, model=name)
    spec = registry.resolve(options.model)
    problem = ""
    if spec.path and (file := gguf_files.file_in(spec.path)):
        if options.engine not in ("auto", "gguf"):
            raise ConfigurationError(
                f"{file.name} is a GGUF file, which only the engine gguf runs. Choose that or auto."
            )
        return Found(spec, file.parent, None, why, file, "the model is a GGUF file")
    if spec == registry.SAMPLE and group.size == 1:
        if options.engine != "gguf":
            problem = gguf_files.why_not(options, _device(options))
        if not problem:
            file = sample.ensure_gguf(cache_dir, report, cancelled)
            reason = gguf_files.ASKED if options.engine == "gguf" else gguf_files.FASTER
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
        checkpoint = hub.fetch(spec.repo_id, options.revision, report, cancelled)
        folder, commit = checkpoint.folder, checkpoint.commit
    else:
        folder = sample.ensure_sample(cache_dir, report, cancelled)
    return Found(spec, folder, commit, why, engine_why=problem)


def _gguf_of_the_hub(
    spec: ModelSpec, options: LoadOptions, report: Report, cancelled: threading.Event, why: str
) -> Found | str:
    """The model by its GGUF file, fetched where it has to be, or why that is not taken."""
    asked, file = options.engine == "gguf", gguf_files.cached_file(spec)
    if not asked and (problem := gguf_files.why_not(options, _device(options))):
        return problem
    if file is None:
        if not asked and hub.cached(spec.repo_id or ""):
            fetch = gguf_files.how_to_fetch(spec)
            return f"the safetensors are in the hub's cache already; it is several times as fast on a CPU: {fetch}"
        try:
            file = gguf_files.fetch(spec, report, cancelled)
        except LoadCancelledError:
            raise
        except GraniteDemoError as error:
            if asked:
                raise
            return f"it could not be fetched: {error}"
    folder = gguf_files.tokenizer_folder(spec) or file.parent
    return Found(spec, folder, None, why, file, gguf_files.ASKED if asked else gguf_files.FASTER)


def _device(options: LoadOptions) -> str:
    from granite_demo.placement import choose_device

    return choose_device(options.device)[0]


def _set_threads(wanted: int, options: LoadOptions) -> tuple[Fact, ...]:
    """Before the engine's thread is there: it computes on as many as torch has when it starts."""
    import torch

    from granite_demo.placement import ASKED, choose_device
    from granite_demo.probing import choose_threads

    if wanted:
        torch.set_num_threads(wanted)
        return (("Threads", str(wanted), ASKED),)
    if choose_device(options.device)[0] != "cpu":
        return ()
    count, why = choose_threads()
    return (("Threads", str(count), why),)


def _choose(cache_dir: Path, options: LoadOptions) -> tuple[str, str]:
    from granite_demo.choosing import choose_model
    from granite_demo.placement import choose_device, free_memory

    device, _ = choose_device(options.device)
    return choose_model(cache_dir, free_memory(device), device != "cpu")
