"""Runs a GGUF file on llama.cpp's caches: on a CPU several times as fast as torch, whose weights are larger.

Choosing a token reads all weights once, so tokens per second are at most bandwidth / file size. Sampling is the
project's own, on llama.cpp's logits.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from granite_demo.engine.interleaved.prefix_cache import common
from granite_demo.engine.protocol import score_chunk
from granite_demo.engine.token_stream import Cancelled
from granite_demo.loading.llama_cpp import Aborted, LlamaCache, LlamaFile
from granite_demo.types.model_status import Fact, gigabytes

WORTH = 0.9
"""Fewer threads are chosen where a token takes less than this part of its time on more."""
WORTH_COPYING = 64
"""Tokens below which reading them again is about as fast as copying what another conversation has."""


@dataclass(slots=True, eq=False)
class GgufSlot:
    """A place in the cache, by its number, and the token ids in it."""

    place: int
    ids: list[int] = field(default_factory=list)
    open: bool = False
    used: int = 0
    """When, counted in requests; 0 for an empty one."""


class GgufRunner:
    """A ``Runner``. An ended conversation stays in its slot until another one needs it."""

    def __init__(
        self,
        file: LlamaFile,
        slots: int,
        length: int,
        threads: int,
        exact: bool = False,
        *,
        measures: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``slots`` conversations of ``length`` tokens; for ``exact`` see ``LlamaCache``, which may raise.

        ``measures``: warming up finds out whether single tokens come faster on fewer ``threads``.
        """
        self._file = file
        self._threads = threads
        self._measures = measures
        self._now = clock
        self._cache = LlamaCache(file, slots, length, threads, exact)
        self._slots = [GgufSlot(place) for place in range(slots)]
        self.context_length = length
        self._clock = 0
        self.slots = slots
        self.chunk = self._cache.batch
        self.score_chunk = min(self.chunk, score_chunk(file.config.vocab_size))
        size = f"{gigabytes(self._cache.nbytes)}, allocated once; more of them wait in line"
        self.facts: tuple[Fact, ...] = (
            ("KV cache", f"{slots} conversations at a time", size),
            self._decoding(f"on {threads} threads"),
        )

    def _decoding(self, threads: str) -> Fact:
        return "Decoding", "llama.cpp", f"{self._file.words}, {threads}; sampling is granite-demo's own"

    def open(self, prompt_ids: Sequence[int]) -> GgufSlot:
        """See ``Runner.open``.

        A slot is taken over when most of it is of use; else its conversation may well go on, and what is of use is
        copied to the one that was used longest ago.
        """
        shared = {slot: self._shared(slot, prompt_ids) for slot in self._slots}
        free = sorted((slot for slot in self._slots if not slot.open), key=lambda slot: slot.used)
        slot = source = max(free, key=lambda slot: shared[slot])
        if 2 * shared[slot] <= len(slot.ids):
            slot, source = free[0], max(self._slots, key=lambda slot: shared[slot])
        if self._file.rewinds and shared[source] - shared[slot] >= WORTH_COPYING:
            self._cache.copy(source.place, slot.place, shared[source])
            slot.ids = source.ids[: shared[source]]
        elif shared[slot] < len(slot.ids):
            self._cut(slot, shared[slot])
        self._touch(slot)
        slot.open = True
        return slot

    def _shared(self, slot: GgufSlot, prompt_ids: Sequence[int]) -> int:
        # The logits after the last token are not kept, so one token at least is read again.
        shared = common(slot.ids, prompt_ids[:-1])
        return shared if self._file.rewinds or shared == len(slot.ids) else 0

    def _cut(self, slot: GgufSlot, length: int) -> None:
        length = length if self._file.rewinds else 0
        self._cache.cut(slot.place, length)
        del slot.ids[length:]

    def _touch(self, slot: GgufSlot) -> None:
        self._clock += 1
        slot.used = self._clock

    def forward(self, slot: GgufSlot, ids: Sequence[int], check: Callable[[], None]) -> torch.Tensor:
        """See ``Runner.forward``. ``check`` is called before each operation of a chunk, so that Stop works inside."""
        return self._pass(slot, ids, check, every=False)

    def forward_all(self, slot: GgufSlot, ids: Sequence[int], check: Callable[[], None]) -> torch.Tensor:
        """See ``Runner.forward_all``."""
        return self._pass(slot, ids, check, every=True)

    def _pass(self, slot: GgufSlot, ids: Sequence[int], check: Callable[[], None], every: bool) -> torch.Tensor:
        before = len(slot.ids)
        if not ids or before + len(ids) > self.context_length:
            raise ValueError(f"{before} and {len(ids)} tokens do not fit a slot of {self.context_length}.")
        # A thousand calls of Python would be a tenth of the time of a single token.
        stop = None if len(ids) == 1 else _asking(check)
        try:
            logits = self._cache.decode(slot.place, before, ids, every=every, stop=stop)
        except Aborted:
            self._cut(slot, before)
            raise Cancelled from None
        slot.ids += ids
        return torch.from_numpy(logits)

    def close(self, slot: GgufSlot) -> None:
        """See ``Runner.close``."""
        slot.open = False
        self._touch(slot)

    def discard(self, slot: GgufSlot) -> None:
        """See ``Runner.discard``."""
        slot.used, slot.open = 0, False
        self._cut(slot, 0)

    def warm_up(self) -> None:
        """See ``Runner.warm_up``: a short prompt and a token, which bring the weights from the disk to memory."""
        [slot, *_] = self._slots
        for ids in ([0] * 8, [0]):
            self.forward(slot, ids, lambda: None)
        if self._measures:
            self._choose_threads(slot)
        self._cut(slot, 0)

    def _choose_threads(self, slot: GgufSlot) -> None:
        counts = sorted({self._threads, max(1, self._threads // 2), 1}, reverse=True)
        seconds = {count: self._token_seconds(slot, count) for count in counts}
        best = counts[0]
        for count in counts[1:]:
            # Threads that bring little wait for one another where others use the cores.
            if seconds[count] < WORTH * seconds[best]:
                best = count
        self._cache.set_threads(best, self._threads)
        tried = ", ".join(f"{taken * 1000:.0f} ms on {count}" for count, taken in seconds.items())
        self.facts = (self.facts[0], self._decoding(f"single tokens on {best} threads (measured: {tried})"))

    def _token_seconds(self, slot: GgufSlot, threads: int) -> float:
        self._cache.set_threads(threads, self._threads)
        self.forward(slot, [0], lambda: None)  # the threads start
        taken = []
        for _ in range(3):
            start = self._now()
            self.forward(slot, [0], lambda: None)
            taken.append(self._now() - start)
        return min(taken)

    def release(self) -> None:
        """See ``Runner.release``."""
        self._slots.clear()
        self._cache.close()
        self._file.close()


def _asking(check: Callable[[], None]) -> Callable[[], bool]:
    def stop() -> bool:
        try:  # an exception does not pass through C
            check()
        except Cancelled:
            return True
        return False

    return stop
