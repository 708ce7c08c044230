"""The protocol between the interleaved engine, which schedules requests, and a runner, which has model and caches."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

from granite_demo.types.model_status import Fact


class Slot(Protocol):
    """One KV cache."""

    ids: list[int]
    """The token ids in the cache, in order."""


S = TypeVar("S", bound=Slot)


class Runner(Protocol[S]):
    """Runs the model on slots. All methods are called on the engine's thread only."""

    facts: tuple[Fact, ...]
    """(name, value, reason) of the runner's choices."""
    slots: int
    """The maximum number of open slots."""
    context_length: int
    """The maximum number of tokens in a slot."""
    chunk: int
    """The maximum number of tokens in a call of ``forward``."""
    score_chunk: int
    """The maximum number of tokens in a call of ``forward_all``."""

    def open(self, prompt_ids: Sequence[int], salt: str = "") -> S:
        """Return a slot whose ids are a proper prefix of the prompt, or empty.

        They are from an earlier conversation with the same ``SamplingParams.salt``.
        """
        ...

    def forward(self, slot: S, ids: Sequence[int], check: Callable[[], None]) -> torch.Tensor:
        """Append ``ids`` to the slot and return the logits after the last of them, shape (1, vocabulary).

        Calls ``check`` from time to time. If it raises Cancelled, the slot is as before the call. After any other
        exception, the slot can only be discarded.
        """
        ...

    def forward_all(self, slot: S, ids: Sequence[int], check: Callable[[], None]) -> torch.Tensor:
        """Do the same as ``forward``, but return the logits after each of ``ids``, shape (n, vocabulary)."""
        ...

    def close(self, slot: S) -> None:
        """Keep the slot of an ended request for later prompts with the same prefix, while there is space."""
        ...

    def discard(self, slot: S) -> None:
        """Drop a slot in which ``forward`` failed."""
        ...

    def warm_up(self) -> None:
        """Do the initial work for which the first request would wait."""
        ...

    def release(self) -> None:
        """Drop the references to the model and to all slots."""
        ...
