"""Finds the request that makes a step fail, so that the other requests can continue."""

import logging
from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar

from granite_demo.engine.failures import as_user_error, gpu_is_lost
from granite_demo.errors import EngineError, GraniteDemoError

log = logging.getLogger(__name__)


class HasAnswer(Protocol):
    """A request whose answer grows token by token."""

    answer: list[int]


R = TypeVar("R", bound=HasAnswer)


class Quarantine(Generic[R]):
    """The requests of a failed step. They run again one at a time, each until it is past the point of the failure.

    A request is faulty if it was alone in a failed step, or if a step fails while it is the one under test. Not
    thread-safe.
    """

    def __init__(self) -> None:
        self._line: list[R] = []
        self._cleared: list[R] = []
        self._tested: R | None = None
        self._passed_at = 0

    def __len__(self) -> int:
        return len(self._line) + len(self._cleared)

    def __bool__(self) -> bool:
        """Whether a request waits here or is under test. Until then, no other request can start."""
        return bool(len(self)) or self._tested is not None

    def split(self, failed: list[R]) -> tuple[list[R], list[R]]:
        """Split the requests of a failed step into faulty ones and others. The first list can be empty."""
        tested, self._tested = self._tested, None
        if tested is not None and tested in failed:
            return [tested], [request for request in failed if request is not tested]
        return (failed, []) if len(failed) == 1 else ([], failed)

    def add(self, requests: Iterable[R], alone: bool) -> None:
        """Add requests to run again: ``alone``, that is one at a time, if the faulty one is not known."""
        (self._line if alone else self._cleared).extend(requests)

    def take(self) -> R | None:
        """Return the next request to run, or None while another one is under test."""
        if self._cleared:
            return self._cleared.pop(0)
        if self._tested is not None or not self._line:
            return None
        self._tested = self._line.pop(0)
        # The failed step computed one token, and with asynchronous batching, a second one was in flight.
        self._passed_at = len(self._tested.answer) + 3
        return self._tested

    def release_if_passed(self, request: R, tokens: int) -> bool:
        """End the test of ``request`` if it has more ``tokens`` than at the failure. Return whether the test ended."""
        if request is not self._tested or tokens < self._passed_at:
            return False
        self._tested = None
        return True

    def discard(self, request: R) -> None:
        """Forget a request that ended or was cancelled, so that the next one can be tested."""
        if request is self._tested:
            self._tested = None

    def clear(self) -> list[R]:
        """Remove and return all requests."""
        requests = [*self._cleared, *self._line]
        self._line, self._cleared, self._tested = [], [], None
        return requests


def failure_error(error: BaseException | None) -> GraniteDemoError:
    """Return the error for the faulty requests of a loop that ended with ``error``.

    If the GPU is lost, raises ``error`` itself.
    """
    if error is not None and gpu_is_lost(error):
        raise error
    known = as_user_error(error) if error else None
    return known or EngineError("The model's loop ended. Try again.")


def refusal_error(output: Any) -> GraniteDemoError | None:
    """Return the error for a request that the running loop refused, or None if it did not refuse it."""
    if output.error is None:
        return None
    log.error("The loop refused a request: %s", output.error)
    return EngineError("The model failed before it could answer. The log has the details. Try again.")
