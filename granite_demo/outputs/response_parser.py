"""Parses the decoded text of one answer into reasoning, text, tool calls, citations and appendices.

The ``Dialect`` supplies all markers. The text can be fed in pieces of any size: the joined parts are the same. At the
end, call ``flush`` to get the text that was held back, or ``discard`` to drop it.
"""

import re
from collections.abc import Sequence
from typing import Literal

from granite_demo.outputs.dialects import Dialect
from granite_demo.outputs.parts import Part, Reasoning, Text
from granite_demo.outputs.stop_strings import overlap
from granite_demo.outputs.tool_calls import CUT_OFF, JsonString, read_calls, unreadable
from granite_demo.types.events import Appendix, Citation
from granite_demo.types.messages import ToolSpec

Mode = Literal["lead", "reasoning", "call", "answer", "tool", "mark", "appendix", "ended"]
"""The position in the answer.

``lead``: white space at the start or after a marker; another marker can follow. ``call``: directly after the marker of
a tool call; the next characters decide whether it is a call or text about calls. ``tool``: in the body of a call.
``mark``: in the mark of a cited document.
"""

SPACE = " \t\r\n"
SOURCE_MARK = re.compile(r' *(?:\{ *"?document_id"? *: *)?"?([^"{}<>\n]+?)"? *')
CALL_STARTS = ("{", "[", "<function=")
"""The possible first characters of a call. If other text follows the marker, both are ordinary text."""
MAX_MARK = 64
"""The maximum length of a document's mark, in characters. A longer one is ordinary text."""


class ResponseParser:
    """Parses the text of one answer. Text that can be the start of a marker is held back until more text decides.

    White space around the reasoning, before tool calls and before appendices is part of the markers and is dropped.
    A tool call inside the reasoning ends the reasoning, because models forget to close it before they call.
    """

    def __init__(self, dialect: Dialect, *, starts_in_reasoning: bool = False, tools: Sequence[ToolSpec] = ()) -> None:
        """Set ``starts_in_reasoning`` if the prompt itself opens the reasoning. ``tools`` supplies argument schemas."""
        self._dialect = dialect
        self._tools = tools
        self._mode: Mode = "reasoning" if starts_in_reasoning else "lead"
        # The markers that can follow in "lead", besides those of tool calls and appendices.
        self._leads = (*dialect.reasoning_open, *dialect.reasoning_close, *filter(None, (dialect.response_open,)))
        self._beginning = True  # no marker yet: white space at the start is shown
        self._kinds = {marker.strip(): kind for marker, kind in dialect.appendices}
        self._kind: Literal["citations", "hallucinations"] = "citations"
        self._in_response = False
        self._held = ""
        # White space and the marker of a call, before _held. The text that follows decides whether they are shown.
        # No marker starts in them, so they are not searched again, however long they get.
        self._waiting: list[str] = []
        self._outer: Literal["reasoning", "answer"] = "answer"  # the mode around a "call"
        self._close_may_follow = False  # a call has ended the reasoning, and the closing marker can still follow
        self._string = JsonString()  # the position in the body of a call
        self._body: list[str] = []
        self._reasoning_shown = False
        self._shown = 0
        self._cited: tuple[str, int] | None = None

    @property
    def in_reasoning(self) -> bool:
        """Whether the current position is inside the reasoning."""
        return self._mode == "reasoning" or (self._mode == "call" and self._outer == "reasoning")

    def feed(self, text: str) -> list[Part]:
        """Add ``text`` and return the parts that are now certain."""
        parts: list[Part] = []
        if self._mode != "ended":
            self._held += text
            self._advance(parts)
        return parts

    def flush(self) -> list[Part]:
        """Return the text that was held back. Call this when an end token or the token limit ends the answer."""
        parts: list[Part] = []
        if self._mode == "ended":
            return parts
        if self._mode == "mark":
            if self._dialect.mark_open and self._held.strip(" "):
                self._held = ""  # an incomplete mark has no meaning for the reader
            self._give_up_mark(parts)
            self._advance(parts)
        if self._mode == "call":
            self._waiting.clear()
            self._end_part(parts)
            self._mode = "tool"  # a call that was cut off before its body
        held, self._held = self._take_waiting() + self._held, ""
        if self._mode == "lead":
            held = self._lead_text(held) if self._beginning or held.strip(SPACE) else ""
            self._mode = "answer"
        elif self._mode == "reasoning":
            held = held.rstrip(SPACE)
        self._take(held, parts)
        self._end_part(parts, closed=not self._dialect.tool_close)
        self._mode = "ended"
        return parts

    def discard(self) -> None:
        """Drop the text that was held back. Call this when a stop string or the reader ends the answer."""
        self._held = ""
        self._waiting.clear()
        self._mode = "ended"

    def _take_waiting(self) -> str:
        waited = "".join(self._waiting)
        self._waiting.clear()
        return waited

    def _advance(self, parts: list[Part]) -> None:
        steps = {"lead": self._lead, "call": self._begin_call, "mark": self._read_mark}
        while steps.get(self._mode, self._scan)(parts):
            pass

    def _lead(self, parts: list[Part]) -> bool:
        """Skip white space up to a marker or text. False: more text is necessary."""
        text = self._pass_space()
        markers = (*self._leads, *self._dialect.tool_open, *self._kinds)
        for marker in markers:
            if text.startswith(marker):
                self._held = text[len(marker) :]
                if marker in self._dialect.tool_open:
                    self._waiting.append(self._lead_text(self._take_waiting()) + marker)
                    self._mode, self._outer = "call", "answer"
                    return True
                self._waiting.clear()
                self._switch(marker)
                return True
        if (not text and not self._beginning) or any(marker.startswith(text) for marker in markers):
            return False
        self._held = self._lead_text(self._take_waiting() + text)
        self._mode = "answer"
        return True

    def _begin_call(self, parts: list[Part]) -> bool:
        """Decide whether a call follows its marker, or the marker is ordinary text. False: more text is necessary."""
        text = self._pass_space()
        if text.startswith(CALL_STARTS):
            self._waiting.clear()
            self._end_part(parts)
            self._switch(self._dialect.tool_open[0])
            self._string = JsonString(is_json=not text.startswith("<"))
            self._close_may_follow = self._close_may_follow or self._outer == "reasoning"
        elif any(begun.startswith(text) for begun in CALL_STARTS):
            return False
        else:
            self._mode = self._outer
            waited = self._take_waiting()
            shown = waited.rstrip(SPACE)
            self._take(shown, parts)
            self._waiting.append(waited[len(shown) :])
        return True

    def _pass_space(self) -> str:
        """Move leading white space from the held text to the waiting text, and return the rest."""
        text = self._held.lstrip(SPACE)
        self._waiting.append(self._held[: len(self._held) - len(text)])
        self._held = text
        return text

    def _lead_text(self, held: str) -> str:
        # White space after a marker is dropped, unless there is text on both sides.
        return held if self._beginning or self._shown else held.lstrip(SPACE)

    def _scan(self, parts: list[Part]) -> bool:
        """Take the text up to the next marker. False: there is no complete marker yet."""
        held, markers = self._held, self._ends()
        found = [(at, marker) for marker in markers if (at := held.find(marker)) >= 0]
        if not found:
            begun = len(held) - max((overlap(held, marker) for marker in markers), default=0)
            # White space waits, because a marker that follows removes it.
            shown = held[:begun].rstrip(SPACE) if markers else held[:begun]
            if shown:
                self._take(self._take_waiting() + shown, parts)
            self._waiting.append(held[len(shown) : begun])
            self._held = held[begun:]
            return False
        at, marker = min(found)
        inline = self._mode == "tool" or marker in (self._dialect.cite_open, self._dialect.cite_close)
        self._held = held[at + len(marker) :]
        shown = held[:at] if inline else held[:at].rstrip(SPACE)
        if shown or inline:
            self._take(self._take_waiting() + shown, parts)
        if self._mode == "tool" and self._string.inside:
            self._take(marker, parts)  # inside a JSON string of the call
            return True
        if marker in self._dialect.tool_open:
            if self._mode == "tool":
                self._end_part(parts)
            self._waiting.append(held[len(shown) : at + len(marker)])
            self._outer = "reasoning" if self._mode == "reasoning" else "answer"
            self._mode = "call"
            return True
        self._waiting.clear()
        self._end_part(parts)
        self._switch(marker)
        return True

    def _ends(self) -> tuple[str, ...]:
        """The markers that can end the current part."""
        dialect = self._dialect
        appendices = tuple(marker for marker, _ in dialect.appendices)
        if self._mode == "reasoning":
            return (*dialect.reasoning_close, *dialect.tool_open)
        if self._mode == "appendix":
            return appendices
        reasoning_close = dialect.reasoning_close if self._close_may_follow else ()
        if self._mode == "tool":
            return (*reasoning_close, *dialect.tool_open, *filter(None, (dialect.tool_close,)))
        response_close = dialect.response_close if self._in_response else ""
        singles = filter(None, (response_close, dialect.cite_open, dialect.cite_close))
        return (*reasoning_close, *dialect.tool_open, *appendices, *singles)

    def _take(self, text: str, parts: list[Part]) -> None:
        """Add ``text``, which is certain, to the current part."""
        if self._mode in ("tool", "appendix"):
            self._body.append(text)
            if self._mode == "tool":
                self._string.feed(text)
            return
        if self._mode == "reasoning" and not self._reasoning_shown:
            text = text.lstrip(SPACE)
        if not text:
            return
        if self._mode == "reasoning":
            self._reasoning_shown = True
            parts.append(Reasoning(text))
        else:
            self._shown += len(text)
            parts.append(Text(text))

    def _end_part(self, parts: list[Part], closed: bool = True) -> None:
        body = "".join(self._body).strip()
        self._body.clear()
        if self._mode == "tool":
            calls, rest = read_calls(body, self._tools) if closed else ([unreadable(body, CUT_OFF)], "")
            parts.extend(calls)
            self._mode = "answer"
            self._take(f"\n{rest}" if rest and self._shown else rest, parts)
        elif self._mode == "appendix" and body:
            parts.append(Appendix(self._kind, body))
        elif self._cited is not None:
            parts.append(Citation(*self._cited, self._shown))
            self._cited = None

    def _switch(self, marker: str) -> None:
        """Enter the part that ``marker`` opens, or leave the part that it closes."""
        dialect = self._dialect
        self._beginning = False
        self._leads = ()
        if marker in dialect.reasoning_open:
            self._mode = "reasoning"
        elif marker in dialect.tool_open:
            self._mode = "tool"
        elif marker == dialect.cite_open:
            self._mode = "mark"
        elif marker == dialect.cite_close:
            self._mode = "answer"
        elif marker.strip() in self._kinds:
            self._mode, self._kind = "appendix", self._kinds[marker.strip()]
        else:
            self._mode = "lead"
            if marker in dialect.reasoning_close:
                self._close_may_follow = False
                self._leads = (dialect.response_open,) if dialect.response_open else ()
            elif self._close_may_follow:
                self._leads = dialect.reasoning_close
            self._in_response = self._in_response or marker != dialect.tool_close

    def _read_mark(self, parts: list[Part]) -> bool:
        """Read the mark of a cited document. False: the mark is incomplete."""
        dialect = self._dialect
        mark, close, rest = self._held.partition(dialect.mark_close)
        begins = mark.lstrip(" ").startswith(dialect.mark_open) or not mark.strip(" ")
        match = SOURCE_MARK.fullmatch(mark) if begins and close and len(mark) <= MAX_MARK else None
        if match:
            self._held = rest
            self._mode = "answer"
            self._cited = (match[1], self._shown)
            if not dialect.cite_close:
                self._end_part(parts)
            return True
        if begins and not close and "\n" not in mark and len(mark) <= MAX_MARK + len(dialect.mark_close):
            return False
        self._give_up_mark(parts)
        return True

    def _give_up_mark(self, parts: list[Part]) -> None:
        self._mode = "answer"
        if not self._dialect.cite_close:
            # The marker is ordinary text, unlike the control tokens that enclose a cited text.
            self._take(self._dialect.cite_open, parts)
