"""The decoded text of one answer to its parts: thinking, text, tool calls, citations, appendices.

Knows markers only by their ``Dialect``. ``feed`` text in any cuts: the joined parts are the same. Then either
``flush``, which gives what was held back, or ``discard``.
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

Mode = Literal["lead", "thinking", "call", "answer", "tool", "mark", "appendix", "ended"]
"""Where the text stands: ``lead`` is white space that a marker may follow, ``mark`` the name of a cited document.

``call`` is after a tool call's marker: what follows tells whether it is a call, or text that only speaks of it.
"""

SPACE = " \t\r\n"
MARK = re.compile(r' *(?:\{ *"?document_id"? *: *)?"?([^"{}<>\n]+?)"? *')
CALLS = ("{", "[", "<function=")
"""What a call begins with. Other text after its marker only speaks of calls."""
MAX_MARK = 64
"""Characters after which a document's mark is taken for ordinary text."""


class AnswerParser:
    """Parts the text of one answer. Text that may be the beginning of a marker is held back until that is decided.

    White space around the thinking, and before tool calls and appendices, belongs to the markers and is not shown.
    A tool call within the thinking ends it: models forget to close the thinking before they call.
    """

    def __init__(self, dialect: Dialect, *, thinking_open: bool = False, tools: Sequence[ToolSpec] = ()) -> None:
        """``thinking_open`` is whether the prompt itself has already opened the thinking; ``tools`` may be called."""
        self._dialect = dialect
        self._tools = tools
        self._mode: Mode = "thinking" if thinking_open else "lead"
        # What a marker may be beside tools and appendices, and whether white space before none of them is shown.
        self._leads = (*dialect.think_open, *dialect.think_close, *filter(None, (dialect.response_open,)))
        self._beginning = True
        self._kinds = {marker.strip(): kind for marker, kind in dialect.appendices}
        self._kind: Literal["citations", "hallucinations"] = "citations"
        self._in_response = False
        self._held = ""
        # What waits before that, for what follows to decide: white space, and a call's marker.
        # It is no beginning of a marker, so it isn't looked through again, however long it gets.
        self._waiting: list[str] = []
        self._from: Literal["thinking", "answer"] = "answer"  # where the text of a "call" stands that is none
        self._unclosed = False  # a call has ended the thinking, so its own end marker may still come
        self._string = JsonString()  # of the call's body
        self._body: list[str] = []
        self._thought = False
        self._shown = 0
        self._cited: tuple[str, int] | None = None

    @property
    def thinking(self) -> bool:
        """Whether the text stands within the thinking."""
        return self._mode == "thinking" or (self._mode == "call" and self._from == "thinking")

    def feed(self, text: str) -> list[Part]:
        """The parts that became certain with ``text``."""
        parts: list[Part] = []
        if self._mode != "ended":
            self._held += text
            self._advance(parts)
        return parts

    def flush(self) -> list[Part]:
        """What is held back, at the end of the answer: by an end token or by the limit."""
        parts: list[Part] = []
        if self._mode == "ended":
            return parts
        if self._mode == "mark":
            if self._dialect.mark_open and self._held.strip(" "):
                self._held = ""  # half a mark, which tells a reader nothing
            self._give_up_mark(parts)
            self._advance(parts)
        if self._mode == "call":
            self._waiting.clear()
            self._end_part(parts)
            self._mode = "tool"  # one that was cut off before it began
        held, self._held = self._waited() + self._held, ""
        if self._mode == "lead":
            held = self._lead_text(held) if self._beginning or held.strip(SPACE) else ""
            self._mode = "answer"
        elif self._mode == "thinking":
            held = held.rstrip(SPACE)
        self._take(held, parts)
        self._end_part(parts, closed=not self._dialect.tool_close)
        self._mode = "ended"
        return parts

    def discard(self) -> None:
        """Drop what is held back: a stop string or the reader has ended the answer."""
        self._held = ""
        self._waiting.clear()
        self._mode = "ended"

    def _waited(self) -> str:
        waited = "".join(self._waiting)
        self._waiting.clear()
        return waited

    def _advance(self, parts: list[Part]) -> None:
        steps = {"lead": self._lead, "call": self._begin_call, "mark": self._read_mark}
        while steps.get(self._mode, self._scan)(parts):
            pass

    def _lead(self, parts: list[Part]) -> bool:
        """Pass by white space to a marker, or to the text. False while that is undecided."""
        text = self._pass_space()
        markers = (*self._leads, *self._dialect.tool_open, *self._kinds)
        for marker in markers:
            if text.startswith(marker):
                self._held = text[len(marker) :]
                if marker in self._dialect.tool_open:
                    self._waiting.append(self._lead_text(self._waited()) + marker)
                    self._mode, self._from = "call", "answer"
                    return True
                self._waiting.clear()
                self._switch(marker)
                return True
        if (not text and not self._beginning) or any(marker.startswith(text) for marker in markers):
            return False
        self._held = self._lead_text(self._waited() + text)
        self._mode = "answer"
        return True

    def _begin_call(self, parts: list[Part]) -> bool:
        """Tell a call from a marker that is only spoken of. False while that is undecided."""
        text = self._pass_space()
        if text.startswith(CALLS):
            self._waiting.clear()
            self._end_part(parts)
            self._switch(self._dialect.tool_open[0])
            self._string = JsonString(known=not text.startswith("<"))
            self._unclosed = self._unclosed or self._from == "thinking"
        elif any(begun.startswith(text) for begun in CALLS):
            return False
        else:
            self._mode = self._from
            waited = self._waited()
            shown = waited.rstrip(SPACE)
            self._take(shown, parts)
            self._waiting.append(waited[len(shown) :])
        return True

    def _pass_space(self) -> str:
        """What is held from the first character on that is no white space, which waits."""
        text = self._held.lstrip(SPACE)
        self._waiting.append(self._held[: len(self._held) - len(text)])
        self._held = text
        return text

    def _lead_text(self, held: str) -> str:
        # White space after a marker goes, unless it parts two pieces of text.
        return held if self._beginning or self._shown else held.lstrip(SPACE)

    def _scan(self, parts: list[Part]) -> bool:
        """Take the text up to the next marker. False where there is none yet."""
        held, markers = self._held, self._ends()
        found = [(at, marker) for marker in markers if (at := held.find(marker)) >= 0]
        if not found:
            begun = len(held) - max((overlap(held, marker) for marker in markers), default=0)
            # White space waits, for a marker that follows takes it away.
            shown = held[:begun].rstrip(SPACE) if markers else held[:begun]
            if shown:
                self._take(self._waited() + shown, parts)
            self._waiting.append(held[len(shown) : begun])
            self._held = held[begun:]
            return False
        at, marker = min(found)
        inline = self._mode == "tool" or marker in (self._dialect.cite_open, self._dialect.cite_close)
        self._held = held[at + len(marker) :]
        shown = held[:at] if inline else held[:at].rstrip(SPACE)
        if shown or inline:
            self._take(self._waited() + shown, parts)
        if self._mode == "tool" and self._string.inside:
            self._take(marker, parts)  # a part of what the call says
            return True
        if marker in self._dialect.tool_open:
            if self._mode == "tool":
                self._end_part(parts)
            self._waiting.append(held[len(shown) : at + len(marker)])
            self._from = "thinking" if self._mode == "thinking" else "answer"
            self._mode = "call"
            return True
        self._waiting.clear()
        self._end_part(parts)
        self._switch(marker)
        return True

    def _ends(self) -> tuple[str, ...]:
        """The markers that can end the present part."""
        dialect = self._dialect
        appendices = tuple(marker for marker, _ in dialect.appendices)
        if self._mode == "thinking":
            return (*dialect.think_close, *dialect.tool_open)
        if self._mode == "appendix":
            return appendices
        think_close = dialect.think_close if self._unclosed else ()
        if self._mode == "tool":
            return (*think_close, *dialect.tool_open, *filter(None, (dialect.tool_close,)))
        response_close = dialect.response_close if self._in_response else ""
        singles = filter(None, (response_close, dialect.cite_open, dialect.cite_close))
        return (*think_close, *dialect.tool_open, *appendices, *singles)

    def _take(self, text: str, parts: list[Part]) -> None:
        """Give ``text``, which is certain, to the present part."""
        if self._mode in ("tool", "appendix"):
            self._body.append(text)
            if self._mode == "tool":
                self._string.feed(text)
            return
        if self._mode == "thinking" and not self._thought:
            text = text.lstrip(SPACE)
        if not text:
            return
        if self._mode == "thinking":
            self._thought = True
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
        """Enter the part that ``marker`` opens, or leave the one that it closes."""
        dialect = self._dialect
        self._beginning = False
        self._leads = ()
        if marker in dialect.think_open:
            self._mode = "thinking"
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
            if marker in dialect.think_close:
                self._unclosed = False
                self._leads = (dialect.response_open,) if dialect.response_open else ()
            elif self._unclosed:
                self._leads = dialect.think_close
            self._in_response = self._in_response or marker != dialect.tool_close

    def _read_mark(self, parts: list[Part]) -> bool:
        """Read the mark of a cited document. False while it is incomplete."""
        dialect = self._dialect
        mark, close, rest = self._held.partition(dialect.mark_close)
        begins = mark.lstrip(" ").startswith(dialect.mark_open) or not mark.strip(" ")
        match = MARK.fullmatch(mark) if begins and close and len(mark) <= MAX_MARK else None
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
            # Ordinary text then, unlike the control tokens of a citation that goes round its text.
            self._take(self._dialect.cite_open, parts)
