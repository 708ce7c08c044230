"""Undo and redo of the text in the Write tab. Pure; knows no page."""

from dataclasses import dataclass, replace

MAX_STATES = 100
MAX_CHARACTERS = 2_000_000
"""Of all earlier states together."""


@dataclass(frozen=True, slots=True)
class History:
    """The text now, what it was before and what was undone; the nearest states stand last."""

    text: str = ""
    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    put: int = 0
    """How often a text was put into the box, beside what was typed there."""


def seen(history: History, text: str, put: int | None) -> History:
    """The box has ``text``, and has been put ``put`` texts: with fewer than there were, it is a text of before."""
    # With more it is a page that outlived a restart of the server, and the text is all that is left.
    return history if (put or 0) < history.put else written(history, text)


def accepted(history: History, text: str) -> History:
    """``text`` is put into the box."""
    return replace(written(history, text), put=history.put + 1)


def written(history: History, text: str) -> History:
    """``text`` was typed. What was undone before is gone, unless nothing changed."""
    if text == history.text:
        return history
    past = (*history.past, history.text)[-MAX_STATES:]
    while sum(map(len, past)) > MAX_CHARACTERS:
        past = past[1:]
    return History(text, past, put=history.put)


def undone(history: History) -> History:
    """One state back, if there is one."""
    if not history.past:
        return history
    return History(history.past[-1], history.past[:-1], (*history.future, history.text), history.put + 1)


def redone(history: History) -> History:
    """One state forth, if there is one."""
    if not history.future:
        return history
    return History(history.future[-1], (*history.past, history.text), history.future[:-1], history.put + 1)
