"""Short measurements of this CPU, to choose the precision and the number of threads.

They measure a typical message on synthetic weights: a prompt, which is many rows at once, and an answer, which is one
row at a time.
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

from granite_demo.loading.device import CONTROL_GROUP, within_quota
from granite_demo.loading.float32_prefill import float32_linear

MESSAGE_PROMPT, MESSAGE_ANSWER = 256, 128
"""The tokens of a typical message."""
ROUNDS = 3
"""The number of measurements. The fastest one counts, because other processes can only make one slower."""
WORTH_SHARE = 0.9
"""Fewer threads are chosen only if a message then takes less than this part of its time on more threads."""


class LinearProduct(Protocol):
    """``torch.nn.functional.linear`` without bias, or a replacement."""

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, /) -> torch.Tensor:
        """Return ``x`` times the transpose of ``weight``."""
        ...


@dataclass(frozen=True, slots=True)
class Seconds:
    """The seconds that a typical message takes."""

    prompt: float
    answer: float

    @property
    def total(self) -> float:
        """Prompt and answer together."""
        return self.prompt + self.answer

    def __str__(self) -> str:
        return f"{self.total * 1000:.0f} ms"


def message_seconds(
    dtype: torch.dtype,
    product: LinearProduct = linear,
    clock: Callable[[], float] = time.perf_counter,
    rounds: int = ROUNDS,
) -> Seconds:
    """Measure a few products and extrapolate to a typical message.

    The weights, 16 MB or more, do not fit in the inner caches of a CPU, so single rows are memory-bound as in a model.
    """
    weights = [torch.ones(2048, 512, dtype=dtype) for _ in range(8)]

    def seconds(rows: int, some: list[torch.Tensor]) -> float:
        x = torch.ones(rows, 512, dtype=dtype)
        start = clock()
        for weight in some:
            product(x, weight)
        return (clock() - start) / len(some)

    seconds(1, weights)  # warm up torch
    # One weight is enough for the prompt, because its products are not memory-bound.
    prompt = min(seconds(MESSAGE_PROMPT, weights[:1]) for _ in range(rounds))
    answer = min(seconds(1, weights) for _ in range(2 * rounds))
    return Seconds(len(weights) * prompt, MESSAGE_ANSWER * len(weights) * answer)


@cache
def measured(dtype: torch.dtype, in_float32: bool, threads: int, attempt: int = 0) -> Seconds:
    """Return ``message_seconds`` for the current number of torch threads, measured once per process and ``attempt``.

    With ``in_float32``, the prompt is computed in float32.
    """
    return message_seconds(dtype, float32_linear if in_float32 else linear)


def _on_threads(count: int) -> Seconds:
    torch.set_num_threads(count)
    return measured(torch.float32, False, count)


@dataclass(frozen=True, slots=True)
class Threads:
    """The number of CPU threads of torch, and the reason."""

    count: int
    reason: str
    requested: bool = False
    """Whether the user gave the number, so that no other number is tried."""


@cache
def choose_threads(most: int | None = None, measure: Callable[[int], Seconds] = _on_threads) -> Threads:
    """Measure and set the fastest number of threads: all cores, half of them, or a quarter of them.

    More threads can be slower if memory bandwidth is the limit, or if other processes use the cores.
    """
    most = most or usable_cores()
    counts = [most // share for share in (1, 2, 4) if most // share]
    seconds = {count: measure(count) for count in counts}
    best = counts[0]
    for count in counts[1:]:
        if seconds[count].total < WORTH_SHARE * seconds[best].total:
            best = count
    torch.set_num_threads(best)
    tried = ", ".join(f"{value} on {count}" for count, value in seconds.items())
    return Threads(best, f"measured here: a typical message takes {tried}" if len(counts) > 1 else "the only core")


def usable_cores(control: Path = CONTROL_GROUP) -> int:
    """Return how many physical cores this process can use. In a container, that can be fewer than there are."""
    # The initial number of torch threads respects OMP_NUM_THREADS and the CPU affinity of the process.
    return within_quota(min(torch.get_num_threads(), psutil.cpu_count(logical=False) or 1), control)
