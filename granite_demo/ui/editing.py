"""The states of the text in the editor, to undo and redo. Pure; knows no page."""

from dataclasses import dataclass

MAX_STATES = 100
MAX_CHARACTERS = 2_000_000
"""Of all earlier states together."""


@dataclass(frozen=True, slots=True)
class History:
    """The text now, what it was before and what was undone; the nearest states stand last."""

    text: str = ""
    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()


def written(history: History, text: str) -> History:
    """``text`` was typed or accepted. What was undone before is gone, unless nothing changed."""
    if text == history.text:
        return history
    past = (*history.past, history.text)[-MAX_STATES:]
    while sum(map(len, past)) > MAX_CHARACTERS:
        past = past[1:]
    return History(text, past)


def undone(history: History) -> History:
    """One state back, if there is one."""
    if not history.past:
        return history
    return History(history.past[-1], history.past[:-1], (*history.future, history.text))


def redone(history: History) -> History:
    """One state forth, if there is one."""
    if not history.future:
        return history
    return History(history.future[-1], (*history.past, history.text), history.future[:-1])
