"""The suite ``load``: the time until a model is ready, and the memory that it uses."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psutil

from granite_demo.backends.model_manager import Listener, ModelManager, ReadyModel
from granite_demo.bench import baselines
from granite_demo.bench.measure import GREEDY, Progress, Prompts, Spread, ask
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.types.load_options import LoadOptions, LoadStage
from granite_demo.types.model_status import ModelStatus

FIRST_PROMPT, FIRST_ANSWER = 64, 8
"""Tokens of the request that is answered before memory is measured."""


@dataclass(frozen=True, slots=True)
class Load:
    """Times in seconds and memory in bytes. The first load can be slower, if the files are not in the page cache."""

    load: Spread
    warm_up: Spread
    weights: int
    in_use: int
    """After the warm-up of the engine and one short request."""
    peak: int
    """The peak until now, including the load."""
    counted: str
    """What ``in_use`` and ``peak`` count, as text for the report."""
    kv_cache: int | None
    """The size of the cache of one conversation that fills the context."""
    context: int
    documented: Spread | None = None
    """The time of ``from_pretrained`` of transformers for the same weights, measured between the loads."""


class StageClock:
    """Listens to the states of a model and records when each stage began."""

    def __init__(self, show: Listener = lambda status: None, clock: Callable[[], float] = time.perf_counter) -> None:
        """``show`` also receives the states."""
        self._show = show
        self._clock = clock
        self._marks: list[tuple[LoadStage, float]] = []

    def __call__(self, status: ModelStatus) -> None:
        """Record ``status``. The loading thread calls this."""
        if not self._marks or self._marks[-1][0] != status.stage:
            self._marks.append((status.stage, self._clock()))
        self._show(status)

    def restart(self) -> None:
        """Delete the records of the last load."""
        self._marks.clear()

    def seconds(self, stage: LoadStage, end: float) -> float:
        """Return the duration of ``stage``, or 0 if there was none. The last stage lasts until ``end``."""
        ends = [*(mark for _, mark in self._marks[1:]), end]
        return sum(after - begun for (name, begun), after in zip(self._marks, ends, strict=False) if name == stage)


def measure(
    manager: ModelManager, options: LoadOptions, clock: StageClock, rounds: int, progress: Progress
) -> tuple[Load, ReadyModel]:
    """Load the model ``rounds`` times, and unload it after each time but the last. Raises as ``ModelManager.load``."""
    loads, warm_ups, others = [], [], list[float]()
    for number in range(1, rounds + 1):
        progress(f"round {number} of {rounds}")
        ready = manager.load(options).result()
        end = time.perf_counter()
        loads.append(clock.seconds("loading", end))
        warm_ups.append(clock.seconds("warming up", end))
        if number < rounds:
            documented = _documented_load(ready.loaded)
            del ready  # it holds the weights
            manager.unload(options)
            clock.restart()
            others += [documented()] if documented else []
    loaded = ready.loaded
    prompts = Prompts(loaded.vocabulary, seed=2)
    ask(
        ready.engine,
        [prompts.one(min(FIRST_PROMPT, loaded.context_length - FIRST_ANSWER))],
        replace(GREEDY, max_tokens=FIRST_ANSWER),
    )
    in_use, peak, counted = memory(loaded.placement.device)
    found = Load(
        load=Spread.of(loads),
        warm_up=Spread.of(warm_ups),
        weights=loaded.weight_bytes,
        in_use=in_use,
        peak=peak,
        counted=counted,
        kv_cache=loaded.memory.kv_cache if loaded.memory else None,
        context=loaded.context_length,
        documented=Spread.of(others) if others else None,
    )
    return found, ready


def _documented_load(loaded: LoadedModel) -> Callable[[], float] | None:
    """Return the documented load of the same weights, or None if folder, dtype and device do not describe it."""
    folder, placement = loaded.source.folder, loaded.placement
    if placement.quantization != "none" or placement.spread or not (folder / "config.json").is_file():
        return None
    return partial(baselines.load_seconds, folder, placement.dtype, placement.device)


def memory(device: str) -> tuple[int, int, str]:
    """Return the bytes in use, the peak, and what they count."""
    if device.startswith("cuda"):
        import torch

        devices = range(torch.cuda.device_count())
        in_use = sum(torch.cuda.memory_allocated(index) for index in devices)
        return in_use, sum(torch.cuda.max_memory_allocated(index) for index in devices), "allocated by torch"
    resident: Any = psutil.Process().memory_info()
    # The kernel can update the peak with a delay.
    return resident.rss, max(resident.rss, _peak_resident(resident)), "resident, the whole process"


def _peak_resident(resident: Any) -> int:
    if sys.platform == "win32":
        return int(resident.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
