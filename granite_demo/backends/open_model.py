"""Opens a model in four stages, each with its value: Source, Placement, LoadedModel, Engine.

The real ``Loader`` of the model manager. torch is imported here when the first model is loaded, not before.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.errors import CorruptModelError, InvalidRequestError, LoadCancelledError, OutOfMemoryError
from granite_demo.loading.device import choose_device, place_gguf
from granite_demo.loading.source import Source, find_safetensors, find_source
from granite_demo.loading.tensor_parallel import ALONE, Group
from granite_demo.models import catalogue
from granite_demo.models.installation import has_torch
from granite_demo.outputs.structured_output import prepare
from granite_demo.types.load_options import LoadOptions, LoadStage, Report
from granite_demo.types.model_status import REQUESTED, Chosen

if TYPE_CHECKING:
    from granite_demo.loading.cpu_benchmark import Threads

log = logging.getLogger(__name__)


def open_model(
    cache_dir: Path,
    threads: int,
    options: LoadOptions,
    report: Report,
    cancelled: threading.Event,
    *,
    ignore_ends: bool = False,
    fuse: bool = True,
    single_user: bool = False,
    group: Group = ALONE,
) -> ReadyModel:
    """Make a model ready. Raises as a download and a load do, and LoadCancelledError after ``cancelled`` is set.

    With ``ignore_ends``, no token ends an answer, so that measured answers have one length. Without ``fuse``,
    transformers computes the layers. For a ``single_user``, a GGUF file gets the cache of one conversation, and the
    first constrained answer waits for the preparation of constraints. The processes of ``group`` share the model; only
    the first one downloads. If the model that ``auto`` chose does not fit, the next one is chosen.
    """
    group.join()
    device, without = choose_device(options), frozenset[str]()
    while True:
        search = partial(find_source, cache_dir, options, device.value, report, cancelled, group.size, without)
        source = group.from_first(search)
        try:
            return _open_source(
                source, cache_dir, threads, options, device, report, cancelled, ignore_ends, fuse, single_user, group
            )
        except OutOfMemoryError as error:
            if not source.chosen_because or source.spec == catalogue.SAMPLE or group.size > 1:
                raise
            log.warning("%s was chosen, but does not fit: %s", source.spec.name, error)
            without |= {source.spec.name}


def _open_source(
    source: Source,
    cache_dir: Path,
    threads: int,
    options: LoadOptions,
    device: Chosen[str],
    report: Report,
    cancelled: threading.Event,
    ignore_ends: bool,
    fuse: bool,
    single_user: bool,
    group: Group,
) -> ReadyModel:
    """Load the files of ``source``, and make their engine. Raises as ``open_model``."""
    report("loading", None, "")
    if source.gguf:
        try:
            return _open_gguf(source, options, device.value, threads, report, cancelled, ignore_ends, single_user)
        except CorruptModelError as error:
            if not source.spec.repo_id or options.engine_kind or not has_torch():
                raise
            intact = find_safetensors(
                cache_dir, source.spec, options.revision or source.spec.revision, report, cancelled
            )
            source = replace(intact, chosen_because=source.chosen_because, gguf_because=str(error))
    from granite_demo.engine.factory import create_engine
    from granite_demo.loading.load import load_model
    from granite_demo.loading.placement import place_source

    # torchrun has divided the cores between the processes.
    chosen_threads = _set_threads(threads, device.value) if threads or group.size == 1 else None
    with _compiling(device.value, group):
        placement = place_source(source, options, device, group)
        loaded = load_model(source, placement, report, cancelled, cache_dir, options.keep_quantized)
    loaded = replace(loaded, threads=chosen_threads, eos_ids=frozenset() if ignore_ends else loaded.eos_ids)
    if not (single_user or ignore_ends):
        # This can block everything else for a second: better now than during an answer.
        with suppress(InvalidRequestError):
            prepare(loaded.tokenizer, loaded.eos_ids)
    engine = create_engine(loaded, options.engine_kind, options.compile, report, group, fuse)
    if cancelled.is_set():
        engine.close()
        raise LoadCancelledError("The load was cancelled.")
    return ReadyModel(loaded, engine)


def _open_gguf(
    source: Source,
    options: LoadOptions,
    device: str,
    threads: int,
    report: Report,
    cancelled: threading.Event,
    ignore_ends: bool,
    single_user: bool,
) -> ReadyModel:
    """Open a GGUF file, which needs no torch."""
    from granite_demo.engine.llama_cpp import create_llama_engine
    from granite_demo.loading.gguf import load_gguf
    from granite_demo.loading.llama_gpu import find_llama_gpu

    gpu = find_llama_gpu()
    placement = place_gguf(options, device, gpu)
    loaded = load_gguf(source, placement, report, cancelled, threads, options.kv_cache, gpu, single_user)
    if ignore_ends:
        loaded = replace(loaded, eos_ids=frozenset())
    return ReadyModel(loaded, create_llama_engine(loaded, ignore_ends))


@contextmanager
def _compiling(device: str, group: Group) -> Iterator[None]:
    """On a GPU, compile the sampling kernel during the block, which mostly waits for the disk."""
    import torch

    from granite_demo.engine.sampling.dispatch import compile_chooser

    thread = threading.Thread(target=compile_chooser, args=(torch.device("cuda", group.local_rank),), daemon=True)
    if device == "cuda":
        thread.start()
    yield
    if thread.ident:
        thread.join()


def follow(cache_dir: Path, threads: int, options: LoadOptions, group: Group) -> None:
    """Load the part of this process, and compute with the first process until that one stops."""
    with group.together():
        ready = open_model(cache_dir, threads, options, _silent, threading.Event(), group=group)
    from granite_demo.engine.batching.engine import BatchingEngine

    assert isinstance(ready.engine, BatchingEngine)
    ready.engine.follow()
    group.leave()


def _silent(stage: LoadStage, fraction: float | None, detail: str) -> None:
    pass


def _set_threads(wanted: int, device: str) -> "Threads | None":
    """Set the CPU threads before the engine's thread starts, which keeps the number that torch has then."""
    import torch

    from granite_demo.loading.cpu_benchmark import Threads, choose_threads

    threads = Threads(wanted, REQUESTED, requested=True) if wanted else choose_threads() if device == "cpu" else None
    if threads:
        torch.set_num_threads(threads.count)
    return threads
