"""Marks around untrusted text that survive a chat template, so that the rendered prompt shows who wrote which part.

A mark is the delete character (U+007F) and one more character. Trimming does not remove it, and its JSON escape is
recognized as well. A delete character in the untrusted text itself is doubled.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from granite_demo.types.prompt_view import Origin

ESCAPE = "\x7f"
_SPELLED = ("\\u007f", "\\x7f")
"""ESCAPE as JSON and Python's ``repr`` write it."""
_CODES: dict[Origin, str] = {origin: str(number) for number, origin in enumerate(get_args(Origin))}
_ORIGINS: dict[str, Origin] = {code: origin for origin, code in _CODES.items()}
_OPEN, _CLOSE, _END, _BREAK = f"{ESCAPE}(", f"{ESCAPE})", f"{ESCAPE}.", f"{ESCAPE}-"


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of the text of a prompt, with its origin."""

    origin: Origin
    text: str
    guarded: bool = False
    """Whether it is the text of a control token from untrusted text that the template tore apart."""

    @property
    def untrusted(self) -> bool:
        """Whether the template did not write this text."""
        return self.guarded or self.origin != "template"


class TaintMarker:
    """Marks texts and reads the marks back, for one set of control tokens."""

    def __init__(self, controls: list[str]) -> None:
        # The longest first, so that a token takes precedence over the tokens that it contains.
        spelled = "|".join(re.escape(text) for text in sorted(controls, key=len, reverse=True)) or "(?!)"
        self._spelled = re.compile(spelled)
        guarded = rf"{re.escape(_OPEN)}(?:{spelled}){re.escape(_CLOSE)}"
        # Only complete texts match: if a template tore a text apart, the end of the rest is unknown.
        written = rf"{ESCAPE}(?P<code>\d)(?P<text>(?:[^{ESCAPE}]++|{ESCAPE}[{ESCAPE}-]|{guarded})*+){re.escape(_END)}"
        self._marked = re.compile(rf"{written}|(?P<guarded>{guarded})|{ESCAPE}[\d().{ESCAPE}-]?")

    def spells_control(self, text: str) -> bool:
        """Whether ``text`` contains the text of a control token."""
        return self._spelled.search(text) is not None

    def mark_key(self, origin: Origin, text: str) -> str:
        """Mark the key of an object only if that is necessary, because templates look up keys by name."""
        return self.mark(origin, text) if ESCAPE in text or "7f" in text or self.spells_control(text) else text

    def mark(self, origin: Origin, text: str, inside: bool = False) -> str:
        """Return ``text`` with marks around it and around each control token that it spells.

        With ``inside``, the marks are inside the leading and trailing white space. Empty text stays empty, because
        templates test for that.
        """
        core = text.strip() if inside else text
        if not core:
            return text
        before, after = (text[: text.index(core)], text[text.index(core) + len(core) :]) if inside else ("", "")
        core = core.replace(ESCAPE, ESCAPE * 2)
        for spelled in _SPELLED:
            core = core.replace(spelled[1:], f"{spelled[1]}{_BREAK}{spelled[2:]}")
        core = self._spelled.sub(rf"{_OPEN}\g<0>{_CLOSE}", core)
        return f"{before}{ESCAPE}{_CODES[origin]}{core}{_END}{after}"

    def read(self, marked: str) -> Iterator[Span]:
        """Yield the spans of a rendered text without the marks. Text outside all marks has the origin "template"."""
        for spelled in _SPELLED:
            marked = marked.replace(spelled, ESCAPE)
        start = 0
        for match in self._marked.finditer(marked):
            if match.start() > start:
                yield Span("template", marked[start : match.start()])
            start = match.end()
            if match["code"]:
                yield Span(_ORIGINS[match["code"]], _plain(match["text"]))
            elif match["guarded"]:
                yield Span("template", _plain(match["guarded"]), guarded=True)
            elif match[0] == ESCAPE * 2:
                yield Span("template", ESCAPE)
        if start < len(marked):
            yield Span("template", marked[start:])

    def cut(self, text: str) -> list[str]:
        """Split ``text`` into pieces that spell no control token."""
        pieces, start = [], 0
        while match := self._spelled.search(text, start):
            pieces.append(text[start : match.start() + 1])
            start = match.start() + 1
        return [*pieces, text[start:]]


def _plain(text: str) -> str:
    return re.sub(rf"{ESCAPE}(.)", lambda match: ESCAPE if match[1] == ESCAPE else "", text, flags=re.DOTALL)
