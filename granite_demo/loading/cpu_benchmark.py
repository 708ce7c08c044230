"""Short measurements of this CPU, for choices that no list of processors can make. Imports torch.

A typical message is a question and an answer: many rows through the weights at once, then one row at a time. What is
measured is that, on random weights.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import psutil
import torch
from torch.nn.functional import linear

from granite_demo.loading.float32_prefill import wide_linear

PROMPT, ANSWER = 256, 128
"""Tokens of a typical message."""
ROUNDS = 3
"""The fastest of so many counts: another process can only make one slower."""
WORTH = 0.9
"""Fewer threads are chosen where a message takes less than this part of its time on more; the others stay free."""


class Linear(Protocol):
    """``torch.nn.functional.linear``, or another way to compute it."""

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, /) -> torch.Tensor:
        """The product."""
        ...


@dataclass(frozen=True, slots=True)
class Seconds:
    """What a typical message takes."""

    prompt: float
    answer: float

    @property
    def total(self) -> float:
        """Both."""
        return self.prompt + self.answer

    def __str__(self) -> str:
        return f"{self.total * 1000:.0f} ms"


def message_seconds(
    dtype: torch.dtype, product: Linear = linear, clock: Callable[[], float] = time.perf_counter, rounds: int = ROUNDS
) -> Seconds:
    """The time that a typical message takes, most of it extrapolated.

    The weights, 16 MB or more, do not fit a CPU's inner caches, so single rows are bound by memory as in a model.
    """
    weights = [torch.ones(2048, 512, dtype=dtype) for _ in range(8)]

    def seconds(rows: int, some: list[torch.Tensor]) -> float:
        x = torch.ones(rows, 512, dtype=dtype)
        start = clock()
        for weight in some:
            product(x, weight)
        return (clock() - start) / len(some)

    seconds(1, weights)  # what torch sets up at first use
    # One weight is enough for a prompt, whose products do not wait for memory.
    prompt = min(seconds(PROMPT, weights[:1]) for _ in range(rounds))
    answer = min(seconds(1, weights) for _ in range(2 * rounds))
    return Seconds(len(weights) * prompt, ANSWER * len(weights) * answer)


@cache
def measured(dtype: torch.dtype, wide: bool, threads: int) -> Seconds:
    """``message_seconds`` on as many threads as torch has now, measured once a process."""
    return message_seconds(dtype, wide_linear if wide else linear)


def _on_threads(count: int) -> Seconds:
    torch.set_num_threads(count)
    return measured(torch.float32, False, count)


@dataclass(frozen=True, slots=True)
class Threads:
    """How many CPU threads torch computes on, and why."""

    count: int
    reason: str
    asked: bool = False
    """Whether the user gave the number, so that no other is tried."""


@cache
def choose_threads(most: int | None = None, measure: Callable[[int], Seconds] = _on_threads) -> Threads:
    """The fastest number of threads. Leaves torch on that many.

    Tried are all cores, half and a quarter of them: more threads than the memory can feed wait for one another, and
    so do threads on cores that others use.
    """
    most = most or usable_cores()
    counts = [most // share for share in (1, 2, 4) if most // share]
    seconds = {count: measure(count) for count in counts}
    best = counts[0]
    for count in counts[1:]:
        if seconds[count].total < WORTH * seconds[best].total:
            best = count
    torch.set_num_threads(best)
    tried = ", ".join(f"{value} on {count}" for count, value in seconds.items())
    return Threads(best, f"measured here: a typical message takes {tried}" if len(counts) > 1 else "the only core")


def usable_cores(control: Path = Path("/sys/fs/cgroup")) -> int:
    """The physical cores that this process may keep busy: in a container often fewer than there are."""
    # torch's own number, before anybody changed it, respects OMP_NUM_THREADS and the affinity of the process.
    cores = min(torch.get_num_threads(), psutil.cpu_count(logical=False) or 1)
    try:
        quota, period = (control / "cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups, or "max"
        return cores
