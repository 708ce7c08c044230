"""The seam inside the interleaved engine: who schedules requests, and who runs the model on a KV cache."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

from granite_demo.types.model_status import Fact


class Slot(Protocol):
    """One KV cache."""

    ids: list[int]
    """The token ids whose keys and values it holds, in order."""


S = TypeVar("S", bound=Slot)


class Runner(Protocol[S]):
    """Runs the model on slots. Every method but the attributes is called on the engine's thread only."""

    facts: tuple[Fact, ...]
    """(name, value, reason) of its own choices."""
    slots: int
    """How many slots may be open at once."""
    context_length: int
    """The most tokens of one of them."""
    chunk: int
    """The most tokens that ``forward`` takes at once."""
    score_chunk: int
    """The most that ``forward_all`` takes."""

    def open(self, prompt_ids: Sequence[int]) -> S:
        """A slot whose ids are a proper prefix of the prompt: what an earlier conversation left, or none."""
        ...

    def forward(self, slot: S, ids: Sequence[int], check: Callable[[], None]) -> torch.Tensor:
        """Append ``ids`` to the slot and return the logits after the last of them, shape (1, vocabulary).

        Calls ``check`` now and then, which raises Cancelled; the slot is then as it was before the call. After any
        other exception the slot can only be discarded.
        """
        ...

    def forward_all(self, slot: S, ids: Sequence[int], check: Callable[[], None]) -> torch.Tensor:
        """The same with the logits after each of ``ids``, shape (n, vocabulary)."""
        ...

    def close(self, slot: S) -> None:
        """The request ended; the slot is kept for a later prompt that begins the same, as long as there is room."""
        ...

    def discard(self, slot: S) -> None:
        """Forget the slot: an exception came out of ``forward``."""
        ...

    def warm_up(self) -> None:
        """Do now what the first request would otherwise wait for."""
        ...

    def release(self) -> None:
        """Let go of the model and of every slot."""
        ...
