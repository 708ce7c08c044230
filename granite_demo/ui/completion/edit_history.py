"""Undo and redo of the text in the Write tab. Pure; knows no page."""

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate

MAX_STATES = 100
MAX_CHARACTERS = 1_000_000
"""Of all earlier states together."""


@dataclass(frozen=True, slots=True)
class History:
    """The text, its earlier states, and the states that were undone; the nearest states are last."""

    text: str = ""
    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    put: int = 0
    """How often the page put a text into the box; typed texts do not count."""


def seen(history: History, text: str, put: int | None) -> History:
    """The history after a look at the box, which has ``text``. With a ``put`` below the history's, the text is old."""
    # With a higher one, the page outlived a restart of the server, and only its text is left.
    return history if (put or 0) < history.put else written(history, text)


def accepted(history: History, text: str) -> History:
    """The history after the page puts ``text`` into the box."""
    return replace(written(history, text), put=history.put + 1)


def written(history: History, text: str) -> History:
    """The history after the visitor typed ``text``. A change drops the states that were undone."""
    if text == history.text:
        return history
    past = (*history.past, history.text)[-MAX_STATES:]
    lengths = list(accumulate(len(state) for state in reversed(past)))
    kept = bisect_right(lengths, MAX_CHARACTERS)
    return History(text, past[len(past) - kept :], put=history.put)


def undone(history: History) -> History:
    """The history one state back, if there is one."""
    if not history.past:
        return history
    return History(history.past[-1], history.past[:-1], (*history.future, history.text), history.put + 1)


def redone(history: History) -> History:
    """The history one state forward, if there is one."""
    if not history.future:
        return history
    return History(history.future[-1], (*history.past, history.text), history.future[:-1], history.put + 1)
