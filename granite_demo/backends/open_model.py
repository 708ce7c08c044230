"""Opens a model: finds or fetches its files, places and loads it, starts and warms up its engine.

The real ``Loader`` of the model manager. torch is imported here when the first model is loaded, not before.
"""

import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.backends.model_source import Found, _find, _safetensors
from granite_demo.errors import (
    CorruptModelError,
    InvalidRequestError,
    LoadCancelledError,
)
from granite_demo.loading import gguf as loading_gguf
from granite_demo.loading.tensor_parallel import ALONE, Group
from granite_demo.outputs.structured_output import prepare
from granite_demo.types.load_options import LoadOptions, LoadStage, Report
from granite_demo.types.model_status import ASKED

if TYPE_CHECKING:
    from granite_demo.loading.cpu_benchmark import Threads
    from granite_demo.loading.load import LoadedModel


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

    from granite_demo.engine.factory import create_engine
    from granite_demo.engine.sampling.dispatch import compile_chooser

    # torchrun has shared the cores among the processes.
    chosen_threads = _set_threads(threads, options) if threads or group.size == 1 else None
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
    loaded = replace(loaded, threads=chosen_threads, no_gguf="" if found.gguf else found.engine_why)
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
    return ReadyModel(loaded, engine)


def _load(
    found: Found, options: LoadOptions, report: Report, cancelled: threading.Event, cache_dir: Path, group: Group
) -> "LoadedModel":
    from granite_demo.loading.load import load_model

    if found.gguf:
        loaded = loading_gguf.load_gguf(
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
    from granite_demo.engine.batching.engine import BatchingEngine

    assert isinstance(ready.engine, BatchingEngine)
    ready.engine.follow()
    group.leave()


def _silent(stage: LoadStage, fraction: float | None, detail: str) -> None:
    pass


def _set_threads(wanted: int, options: LoadOptions) -> "Threads | None":
    """Before the engine's thread is there: it computes on as many as torch has when it starts."""
    import torch

    from granite_demo.loading.cpu_benchmark import Threads, choose_threads
    from granite_demo.loading.placement import choose_device

    if wanted:
        torch.set_num_threads(wanted)
        return Threads(wanted, ASKED, asked=True)
    return choose_threads() if choose_device(options.device)[0] == "cpu" else None
