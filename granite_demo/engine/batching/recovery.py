"""Which request made a step fail? Found out by elimination, so that the others go on."""

import logging
from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar

from granite_demo.engine.failures import as_user_error, gpu_is_lost
from granite_demo.errors import EngineError, GraniteDemoError

log = logging.getLogger(__name__)


class HasAnswer(Protocol):
    """Anything whose answer grows token by token."""

    answer: list[int]


R = TypeVar("R", bound=HasAnswer)


class Suspects(Generic[R]):
    """The requests of a step that failed. They run again one at a time, each until it is past the point of the failure.

    Whoever is on trial when a step fails again, or was alone in the step, is the culprit. Not thread-safe.
    """

    def __init__(self) -> None:
        self._line: list[R] = []
        self._cleared: list[R] = []
        self._on_trial: R | None = None
        self._passed_at = 0

    def __len__(self) -> int:
        return len(self._line) + len(self._cleared)

    def __bool__(self) -> bool:
        """Whether any is still to run, or on trial: until then nobody else may join it."""
        return bool(len(self)) or self._on_trial is not None

    def judge(self, failed: list[R]) -> tuple[list[R], list[R]]:
        """(culprits, innocent) of the requests that were in a step that failed."""
        on_trial, self._on_trial = self._on_trial, None
        if on_trial is not None and on_trial in failed:
            return [on_trial], [request for request in failed if request is not on_trial]
        return (failed, []) if len(failed) == 1 else ([], failed)

    def add(self, requests: Iterable[R], alone: bool) -> None:
        """Have these run again, one ``alone`` at a time where the culprit is not known yet."""
        (self._line if alone else self._cleared).extend(requests)

    def take(self) -> R | None:
        """The next one to run, or None while the one on trial has not passed."""
        if self._cleared:
            return self._cleared.pop(0)
        if self._on_trial is not None or not self._line:
            return None
        self._on_trial = self._line.pop(0)
        # The step that failed computed one token, and with asynchronous batching a second one was in flight.
        self._passed_at = len(self._on_trial.answer) + 3
        return self._on_trial

    def clear_if_passed(self, request: R, tokens: int) -> bool:
        """Acquit ``request`` once it has more than the ``tokens`` at which it failed. True if it was on trial."""
        if request is not self._on_trial or tokens < self._passed_at:
            return False
        self._on_trial = None
        return True

    def gone(self, request: R) -> None:
        """The request ended or was cancelled: the next one can be tried."""
        if request is self._on_trial:
            self._on_trial = None

    def clear(self) -> list[R]:
        """Remove and return all."""
        requests = [*self._cleared, *self._line]
        self._line, self._cleared, self._on_trial = [], [], None
        return requests


def cause_of(error: BaseException | None) -> GraniteDemoError:
    """What the culprit of a loop that ended by ``error`` is told. Raises ``error`` where the GPU is lost with it."""
    if error is not None and gpu_is_lost(error):
        raise error
    known = as_user_error(error) if error else None
    return known or EngineError("The model's loop ended. Try again.")


def as_failed(output: Any) -> GraniteDemoError | None:
    """What the reader of a request is told that the loop refused, by itself and going on; None if it did not."""
    if output.error is None:
        return None
    log.error("The loop refused a request: %s", output.error)
    return EngineError("The model failed before it could answer. The log has the details. Try again.")
