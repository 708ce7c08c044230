"""Marks around what people wrote, which go through a chat template and tell afterwards what it did with it.

A mark is the delete character and one more: trimming does not change it, and how JSON spells it is read, too.
What people wrote of it is doubled. Knows neither tokenizers nor requests.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from granite_demo.types.prompt_view import Origin

ESCAPE = "\x7f"
_SPELLED = ("\\u007f", "\\x7f")
"""What JSON and Python's repr make of it."""
_CODES: dict[Origin, str] = {origin: str(number) for number, origin in enumerate(get_args(Origin))}
_ORIGINS: dict[str, Origin] = {code: origin for origin, code in _CODES.items()}
_OPEN, _CLOSE, _END, _NOTHING = f"{ESCAPE}(", f"{ESCAPE})", f"{ESCAPE}.", f"{ESCAPE}-"


@dataclass(frozen=True, slots=True)
class Stretch:
    """A piece of a prompt's text."""

    origin: Origin
    text: str
    guarded: bool = False
    """It spells a control token that somebody wrote, in what else looks like the template's own text."""

    @property
    def foreign(self) -> bool:
        """Whether the template did not write it."""
        return self.guarded or self.origin != "template"


class Marker:
    """Marks texts and reads the marks again, for one set of control tokens."""

    def __init__(self, controls: list[str]) -> None:
        # The longest first, so that a token wins over those that it contains.
        spelled = "|".join(re.escape(text) for text in sorted(controls, key=len, reverse=True)) or "(?!)"
        self._spelled = re.compile(spelled)
        guarded = rf"{re.escape(_OPEN)}(?:{spelled}){re.escape(_CLOSE)}"
        # Only whole: where a template tore a text apart, nobody can say where the rest of it ends.
        written = rf"{ESCAPE}(?P<code>\d)(?P<text>(?:[^{ESCAPE}]++|{ESCAPE}[{ESCAPE}-]|{guarded})*+){re.escape(_END)}"
        self._marked = re.compile(rf"{written}|(?P<guarded>{guarded})|{ESCAPE}[\d().{ESCAPE}-]?")

    def spells_control(self, text: str) -> bool:
        """Whether a control token is spelled in ``text``."""
        return self._spelled.search(text) is not None

    def mark_key(self, origin: Origin, text: str) -> str:
        """The key of an object, marked only where it must be: templates look keys up by name."""
        return self.mark(origin, text) if ESCAPE in text or "7f" in text or self.spells_control(text) else text

    def mark(self, origin: Origin, text: str, inside: bool = False) -> str:
        """``text`` with marks around it, or ``inside`` of the white space at its ends, and around control tokens.

        Empty text stays empty: templates ask whether there is any.
        """
        core = text.strip() if inside else text
        if not core:
            return text
        before, after = (text[: text.index(core)], text[text.index(core) + len(core) :]) if inside else ("", "")
        core = core.replace(ESCAPE, ESCAPE * 2)
        for spelled in _SPELLED:
            core = core.replace(spelled[1:], f"{spelled[1]}{_NOTHING}{spelled[2:]}")
        core = self._spelled.sub(rf"{_OPEN}\g<0>{_CLOSE}", core)
        return f"{before}{ESCAPE}{_CODES[origin]}{core}{_END}{after}"

    def read(self, marked: str) -> Iterator[Stretch]:
        """The stretches of a text with marks, without them; what is in no marks is the template's."""
        for spelled in _SPELLED:
            marked = marked.replace(spelled, ESCAPE)
        start = 0
        for match in self._marked.finditer(marked):
            if match.start() > start:
                yield Stretch("template", marked[start : match.start()])
            start = match.end()
            if match["code"]:
                yield Stretch(_ORIGINS[match["code"]], _plain(match["text"]))
            elif match["guarded"]:
                yield Stretch("template", _plain(match["guarded"]), guarded=True)
            elif match[0] == ESCAPE * 2:
                yield Stretch("template", ESCAPE)
        if start < len(marked):
            yield Stretch("template", marked[start:])

    def cut(self, text: str) -> list[str]:
        """``text`` in pieces that spell no control token."""
        pieces, start = [], 0
        while match := self._spelled.search(text, start):
            pieces.append(text[start : match.start() + 1])
            start = match.start() + 1
        return [*pieces, text[start:]]


def _plain(text: str) -> str:
    return re.sub(rf"{ESCAPE}(.)", lambda match: ESCAPE if match[1] == ESCAPE else "", text, flags=re.DOTALL)
