"""What ended conversations left, found again by how a prompt begins. Knows token ids and sizes, no tensors."""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar


class Kept(Protocol):
    """What is kept: a cache and the token ids that it was computed from."""

    ids: list[int]

    @property
    def nbytes(self) -> int:
        """The memory it takes."""
        ...


K = TypeVar("K", bound=Kept)


class PrefixStore(Generic[K]):
    """Holds caches up to a number of bytes; the one that was used longest ago goes first."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._kept: list[K] = []  # the newest last

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """The memory that all of them take."""
        return sum(kept.nbytes for kept in self._kept)

    def put(self, new: K) -> None:
        """Keep ``new``, and no longer those that are a beginning of it; the others alone where it is too large."""
        if new.nbytes > self._budget:
            return
        self._kept = [kept for kept in self._kept if common(kept.ids, new.ids) < len(kept.ids)]
        self._kept.append(new)
        while self.nbytes > self._budget:
            del self._kept[0]

    def find(self, ids: Sequence[int], whole: bool = False) -> tuple[K | None, int]:
        """The one that has most in common with the beginning of ``ids``, and how many ids that are; or None and 0.

        With ``whole`` only those count that are a beginning of ``ids`` from their first id to their last. At least one
        id of ``ids`` is always left over: the logits after the last one are not kept.
        """
        best, most = None, 0
        for kept in reversed(self._kept):
            shared = common(kept.ids, ids[:-1])
            if shared > most and (shared == len(kept.ids) or not whole):
                best, most = kept, shared
        if best is not None:
            self._kept.remove(best)
            self._kept.append(best)
        return best, most

    def take(self, kept: K) -> None:
        """Keep it no longer: somebody goes on with it."""
        self._kept.remove(kept)

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
