"""The suite ``load``: how long a model takes to get ready, and the memory it takes."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psutil
import torch

from granite_demo.backends.model_manager import Listener, ModelManager, ReadyModel
from granite_demo.bench import baselines
from granite_demo.bench.measure import GREEDY, Prompts, Spread, ask
from granite_demo.loading.load import LoadedModel
from granite_demo.types.load_options import LoadOptions, LoadStage
from granite_demo.types.model_status import ModelStatus

PROMPT, ANSWER = 64, 8
"""Tokens of the one request that is answered before memory is looked at."""


@dataclass(frozen=True, slots=True)
class Load:
    """Seconds and bytes. The first of several loads also reads the files from disk, where they are not cached."""

    load: Spread
    warm_up: Spread
    weights: int
    in_use: int
    """With the engine warm and one short request answered."""
    peak: int
    """The most so far, loading included."""
    counted: str
    """What ``in_use`` and ``peak`` count."""
    kv_cache: int | None
    """The cache of one conversation that fills the context."""
    context: int
    documented: Spread | None = None
    """Seconds that transformers' ``from_pretrained`` takes for the same weights, between our loads."""


class StageClock:
    """Hears a model's states and notes when each stage began."""

    def __init__(self, show: Listener = lambda status: None, clock: Callable[[], float] = time.perf_counter) -> None:
        """``show`` hears the states, too."""
        self._show = show
        self._clock = clock
        self._marks: list[tuple[LoadStage, float]] = []

    def __call__(self, status: ModelStatus) -> None:
        """Called from the loading thread."""
        if not self._marks or self._marks[-1][0] != status.stage:
            self._marks.append((status.stage, self._clock()))
        self._show(status)

    def restart(self) -> None:
        """Forget the load that ended."""
        self._marks.clear()

    def seconds(self, stage: LoadStage, end: float) -> float:
        """How long ``stage`` took, the last one until ``end``; 0 if there was none."""
        ends = [*(mark for _, mark in self._marks[1:]), end]
        return sum(after - begun for (name, begun), after in zip(self._marks, ends, strict=False) if name == stage)


def measure(
    manager: ModelManager, options: LoadOptions, clock: StageClock, rounds: int, tell: Callable[[str], None]
) -> tuple[Load, ReadyModel]:
    """Load and unload the model ``rounds`` times; the last time it stays. Raises what a load raises."""
    loads, warm_ups, others = [], [], list[float]()
    for number in range(1, rounds + 1):
        tell(f"round {number} of {rounds}")
        ready = manager.load(options).result()
        end = time.perf_counter()
        loads.append(clock.seconds("loading", end))
        warm_ups.append(clock.seconds("warming up", end))
        if number < rounds:
            wanted = _documented_load(ready.loaded)
            del ready  # whoever holds it holds the weights
            manager.unload(options)
            clock.restart()
            others += [wanted()] if wanted else []
    loaded = ready.loaded
    prompts = Prompts(loaded.model.config.vocab_size, seed=2)
    ask(ready.engine, [prompts.one(min(PROMPT, loaded.context_length - ANSWER))], replace(GREEDY, max_tokens=ANSWER))
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
    """The same load as the documentation has it, where it can be told by a folder and a type alone."""
    folder, placement = loaded.source.folder, loaded.placement
    if placement.quantization != "none" or placement.spread or not (folder / "config.json").is_file():
        return None
    return partial(baselines.load_seconds, folder, placement.dtype, placement.device)


def memory(device: str) -> tuple[int, int, str]:
    """Bytes in use, the most so far, and whose they are."""
    if device.startswith("cuda"):
        devices = range(torch.cuda.device_count())
        in_use = sum(torch.cuda.memory_allocated(index) for index in devices)
        return in_use, sum(torch.cuda.max_memory_allocated(index) for index in devices), "allocated by torch"
    resident: Any = psutil.Process().memory_info()
    # The kernel may count the peak a little behind.
    return resident.rss, max(resident.rss, _peak_resident(resident)), "resident, the whole process"


def _peak_resident(resident: Any) -> int:
    if sys.platform == "win32":
        return int(resident.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
