"""Stores the caches of ended conversations and finds them by the longest common prefix with a prompt."""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

MAX_CACHES = 256
"""Caches that are stored: each one is compared with each prompt."""


class Kept(Protocol):
    """A cache with the token ids from which it was computed."""

    ids: list[int]
    salt: str
    """See ``SamplingParams.salt``."""

    @property
    def nbytes(self) -> int:
        """The size of the cache in bytes."""
        ...


K = TypeVar("K", bound=Kept)


class PrefixStore(Generic[K]):
    """Stores caches up to a number of bytes and of caches, and drops the least recently used first."""

    def __init__(self, budget_bytes: int, most: int = MAX_CACHES) -> None:
        self._budget = budget_bytes
        self._most = most
        self._kept: dict[int, tuple[K, int]] = {}  # by identity, with the bytes; the most recently used last
        self.nbytes = 0
        """The size of all caches in bytes."""

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, new: K) -> None:
        """Store ``new`` and drop the caches that are a prefix of it. If it is larger than the budget, do nothing."""
        size = new.nbytes
        if size > self._budget:
            return
        for kept, _ in list(self._kept.values()):
            last = len(kept.ids) - 1
            # Most differ at their ends, which is quick to see.
            if kept.salt != new.salt or last >= len(new.ids) or (last >= 0 and kept.ids[last] != new.ids[last]):
                continue
            if kept.ids == new.ids[: last + 1]:
                self.take(kept)
        self._kept[id(new)] = new, size
        self.nbytes += size
        while self.nbytes > self._budget or len(self._kept) > self._most:
            self.take(next(iter(self._kept.values()))[0])

    def find(self, ids: Sequence[int], salt: str = "", complete: bool = False) -> tuple[K | None, int]:
        """Return the cache with the longest common prefix with ``ids`` and its length, or None and 0.

        Only caches with ``salt`` count; with ``complete``, only those that are completely a prefix of ``ids``. The last
        of ``ids`` is never a part of the prefix, because caches do not contain logits.
        """
        best, most, prompt = None, 0, ids[:-1]
        for kept, _ in reversed(self._kept.values()):
            if kept.salt != salt or kept.ids[most : most + 1] != list(prompt[most : most + 1]):
                continue  # its common prefix is not longer
            shared = common(kept.ids, prompt)
            if shared > most and (shared == len(kept.ids) or not complete):
                best, most = kept, shared
        if best is not None:
            self._kept[id(best)] = self._kept.pop(id(best))
        return best, most

    def take(self, kept: K) -> None:
        """Remove a cache from the store, because a request continues with it."""
        self.nbytes -= self._kept.pop(id(kept))[1]

    def clear(self) -> None:
        """Drop all caches."""
        self._kept.clear()
        self.nbytes = 0


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common prefix."""
    if one[:1] != other[:1]:
        return 0
    one, other, length = list(one), list(other), min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    low = 0  # so much is common
    while length - low > 1:
        middle = (low + length) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            length = middle
    return low
