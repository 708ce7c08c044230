"""Parses the decoded text of one answer into reasoning, text, tool calls, citations and appendices.

One state machine reads all families: ``TABLE`` says which tokens count in each state and what they do. The ``Dialect``
supplies the markers. The text can be fed in pieces of any size: the joined parts are the same. At the end, call
``flush`` to get the text that was held back, or ``discard`` to drop it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from granite_demo.outputs.code_spans import CodeSpans
from granite_demo.outputs.dialects import Dialect
from granite_demo.outputs.parts import Part, Reasoning, Text
from granite_demo.outputs.tool_calls import CUT_OFF, Tag, read_calls, read_python, read_xml, unreadable
from granite_demo.types.events import Appendix, Citation
from granite_demo.types.messages import ToolCall, ToolSpec

Position = Literal[
    "lead",
    "reasoning",
    "answer",
    "key",
    "appendix",
    "begin",
    "info",
    "json",
    "string",
    "xml",
    "value",
    "parameter_end",
    "function_end",
    "tail",
    "ended",
]
"""The position in the answer.

``lead``: white space at the start or after a marker; another marker can follow. ``key``: in the key of a cited
document. In a call: ``begin``, after its marker, where the next characters decide whether it is a call or text about
calls; ``info``, the first line of a fence around it; ``json``, JSON or Python, and ``string`` in it; ``xml``, and
``value`` in it; ``parameter_end`` and ``function_end``, where the next characters decide whether a closing tag was part
of the value; ``tail``, after a complete call, where another one can follow.
"""

SPACE = " \t\r\n"
SOURCE_KEY = re.compile(r' *(?:\{ *"?document_id"? *: *)?"?([^"{}<>\n]+?)"? *')
MAX_KEY = 64
"""The maximum length of a document's key, in characters. A longer one is ordinary text."""
MAX_TAG_NAME = 128
"""The maximum length of the name in a tag of XML. A longer one is no tag."""
TAG_NAME = re.compile(rf"([^<>\n]{{1,{MAX_TAG_NAME}}})>")

SYNTAX = {
    "open": ("{", "[", "("),
    "close": ("}", "]", ")"),
    "comma": (",",),
    "quote": ('"', "'"),
    "fence": ("```",),
    "line": ("\n",),
    "function": ("<function=",),
    "function_close": ("</function>",),
    "parameter": ("<parameter=",),
    "parameter_close": ("</parameter>",),
}
"""The tokens of calls, beside the markers of the dialect."""

_ENDS = {"call_close": "close_call", "call_open": "next_call", "reasoning_close": "end_thinking_call"}
_DOUBTS = {"call_close": "doubt_close", "call_open": "doubt_open", "reasoning_close": "doubt_thinking"}
_STARTS = {
    "reasoning_open": "open_reasoning",
    "reasoning_close": "close_reasoning",
    "call_open": "open_call",
    "call_close": "drop_close",
    "bare_function": "bare_call",
    "bare_python": "bare_call",
    "citations": "open_appendix",
    "hallucinations": "open_appendix",
}
TABLE: dict[Position, dict[str, str]] = {
    "lead": {**_STARTS, "response_open": "open_response"},
    "answer": {**_STARTS, "response_close": "close_response", "cite_open": "open_key", "cite_close": "close_cite"},
    "reasoning": {"reasoning_close": "close_reasoning", "call_open": "open_call", "bare_function": "bare_call"},
    "appendix": {"citations": "open_appendix", "hallucinations": "open_appendix"},
    "begin": {"open": "begin_json", "function": "begin_xml", "python": "begin_json", "fence": "begin_fence"},
    "info": {"line": "end_info"},
    "json": {"quote": "open_string", "open": "open_bracket", "close": "close_bracket", **_ENDS},
    "string": {"escape": "keep", "quote": "close_string", **_DOUBTS},
    "xml": {"function": "open_tag", "parameter": "open_tag", "function_close": "end_function", **_ENDS},
    "value": {
        "function": "keep",
        "parameter": "open_tag",
        "parameter_close": "end_parameter",
        "function_close": "end_function",
        **_DOUBTS,
    },
    "parameter_end": {"function": "open_tag", "parameter": "open_tag", "function_close": "end_function", **_ENDS},
    "function_end": {"function": "open_tag", **_ENDS},
    "tail": {"open": "another", "close": "keep", "comma": "wait", "fence": "keep", **_ENDS},
}
"""The tokens that count in each state, and the method of ``ResponseParser`` that each calls. Other text is content."""
SKIPS = {
    "lead": "no_mark",
    "begin": "no_call",
    "parameter_end": "back_to_value",
    "function_end": "text_after",
    "tail": "end_of_call",
}
"""The states that skip white space, and the method that is called if no token follows."""
LINE_STARTS = ("bare_function", "bare_python", "citations", "hallucinations")
"""The tokens that count only at the start of a line."""


@dataclass(frozen=True, slots=True)
class _Lexer:
    """Finds the tokens of one state."""

    pattern: re.Pattern[str]
    beginnings: frozenset[str]
    longest: int

    def begun(self, text: str) -> int:
        """Return the length of the end of ``text`` that can be the start of a token."""
        for size in range(min(len(text), self.longest), 0, -1):
            if text[-size:] in self.beginnings:
                return size
        return 0


@lru_cache(maxsize=256)
def _lexer(dialect: Dialect, names: tuple[str, ...], state: Position) -> _Lexer:
    kinds: dict[str, tuple[str, ...]] = {**SYNTAX, "python": tuple(f"{name}(" for name in names)}
    kinds["bare_python"] = kinds["python"] if dialect.bare_calls == "python" else ()
    kinds["bare_function"] = tuple(f"<function={name}>" for name in names) if dialect.bare_calls == "function" else ()
    for text, kind in dialect.marks:
        kinds[kind] = (*kinds.get(kind, ()), text)
    found = [(kind, kinds[kind]) for kind in TABLE[state] if kinds.get(kind)]
    parts = [f"(?P<{kind}>{'|'.join(map(re.escape, texts))})" for kind, texts in found]
    beginnings = {text[:size] for _, texts in found for text in texts for size in range(1, len(text))}
    if "escape" in TABLE[state]:
        parts.append(r"(?P<escape>\\.)")
        beginnings.add("\\")
    longest = max(map(len, beginnings), default=0)
    return _Lexer(re.compile("|".join(parts) or "(?!)", re.DOTALL), frozenset(beginnings), longest)


@dataclass(slots=True)
class _Call:
    """The tool call that is read now."""

    before: str
    """The white space and the marker before it: shown if it is not a call."""
    form: Literal["json", "python", "xml"]
    marked: bool = True
    """Whether a marker opened it. If not, text that cannot be read as a call stays text."""
    text: list[str] = field(default_factory=list)
    size: int = 0
    depth: int = 0
    """The open brackets of JSON or Python."""
    quote: str = ""
    tags: list[Tag] = field(default_factory=list)
    nested: int = 0
    """The open calls inside a value, which show how to call."""
    doubt: tuple[int, tuple[Tag, ...]] | None = None
    """The first place where the call could have ended, and the tags before it.

    A marker inside a value can be a part of it, or the call can lack its other ends. What follows decides.
    """
    doubt_closes: bool = False
    """Whether the marker at that place closes a call."""

    def add(self, text: str) -> None:
        if text:
            self.text.append(text)
            self.size += len(text)

    def at_line_start(self) -> bool:
        """Whether the text ends with a line break, or with white space after one."""
        for piece in reversed(self.text):
            _, line_break, line = piece.rpartition("\n")
            if line.strip() or line_break:
                return not line.strip()
        return False

    def end_at_doubt(self) -> str:
        """Cut the call at its doubtful end, and return the text after that."""
        assert self.doubt is not None
        at, tags = self.doubt
        whole = "".join(self.text)
        self.text, self.tags, self.doubt = [whole[:at]], list(tags), None
        return whole[at:]


class ResponseParser:
    """Parses the text of one answer. Text that can be the start of a token is held back until more text decides.

    White space around the reasoning, before tool calls and before appendices is part of the markers and is dropped.
    A tool call inside the reasoning ends the reasoning, because models forget to close it before they call. Markers in
    Markdown code are ordinary text, except the one that closes the reasoning.
    """

    def __init__(self, dialect: Dialect, *, starts_in_reasoning: bool = False, tools: Sequence[ToolSpec] = ()) -> None:
        """Set ``starts_in_reasoning`` if the prompt itself opens the reasoning. ``tools`` supplies argument schemas."""
        self._dialect = dialect
        self._tools = tools
        self._names = tuple(tool.name for tool in tools)
        self._lexers: dict[Position, _Lexer] = {}
        self._state: Position = "reasoning" if starts_in_reasoning else "lead"
        self._held = ""
        # White space and the marker of a call, before _held. The text that follows decides whether they are shown.
        self._waiting: list[str] = []
        self._code = CodeSpans()
        self._beginning = True  # no marker yet: white space at the start is shown
        self._reasoned = starts_in_reasoning
        self._response_may_open = True
        self._in_response = False
        self._outer: Literal["reasoning", "answer"] = "answer"  # the state around a call
        self._close_may_follow = False  # a call has ended the reasoning, and the closing marker can still follow
        self._call_owes_close = False
        self._call: _Call | None = None
        self._appendix: list[str] = []
        self._kind: Literal["citations", "hallucinations"] = "citations"
        self._reasoning_shown = False
        self._shown = 0
        self._cited: tuple[str, int] | None = None
        self._ending = False
        self._cut_off = False

    @property
    def in_reasoning(self) -> bool:
        """Whether the current position is inside the reasoning."""
        return self._state == "reasoning" or (self._state in ("begin", "info") and self._outer == "reasoning")

    def feed(self, text: str) -> list[Part]:
        """Add ``text`` and return the parts that are now certain."""
        parts: list[Part] = []
        if self._state != "ended":
            self._held += text
            while self._step(parts):
                pass
        return parts

    def flush(self, *, cut_off: bool = True) -> list[Part]:
        """Return the text that was held back. With ``cut_off`` false, the model itself ended the answer.

        It then ended the last call, too, whatever ends that lacks.
        """
        parts: list[Part] = []
        if self._state == "ended":
            return parts
        self._ending, self._cut_off = True, cut_off
        while self._step(parts) or self._finish(parts):
            pass
        self._state = "ended"
        return parts

    def discard(self) -> None:
        """Drop the text that was held back. Call this when a stop string or the reader ends the answer."""
        self._held = ""
        self._waiting.clear()
        self._call = None
        self._state = "ended"

    # The machine

    def _step(self, parts: list[Part]) -> bool:
        """Read the next token, and the text before it. False: more text is necessary."""
        if self._state == "key":
            return self._read_key(parts)
        held = self._held
        if (lexer := self._lexers.get(self._state)) is None:
            lexer = self._lexers[self._state] = _lexer(self._dialect, self._names, self._state)
        if skips := self._state in SKIPS:
            held = held.lstrip(SPACE)
            self._waiting.append(self._held[: len(self._held) - len(held)])
            self._held = held
            if not held or held in lexer.beginnings:
                return False
            match = lexer.pattern.match(held)
            if match is None:
                getattr(self, f"_{SKIPS[self._state]}")(parts)
                return True
        else:
            match = lexer.pattern.search(held)
            end = match.start() if match else len(held) - (0 if self._ending else lexer.begun(held))
            self._take(held[:end], parts)
            self._held = held[end:]
            if match is None:
                return False
        kind, token = match.lastgroup or "", match[0]
        self._held = self._held[len(token) :]
        if self._state in ("lead", "reasoning", "answer", "appendix") and not self._counts(kind):
            if skips:
                self._held = token + self._held
                getattr(self, f"_{SKIPS[self._state]}")(parts)
            elif self._state == "appendix":
                self._appendix.append(token)
            else:
                self._take(token, parts)
            return True
        return bool(getattr(self, f"_{TABLE[self._state][kind]}")(kind, token, parts))

    def _counts(self, kind: str) -> bool:
        """Whether a token means here what its ``kind`` says. If not, it is ordinary text."""
        begins = self._state == "lead" and self._beginning
        if kind == "reasoning_close":
            return self._state == "reasoning" or begins or self._close_may_follow
        if self._state == "appendix":
            return self._code.at_line_start
        if self._code.inside or (kind in LINE_STARTS and not self._code.at_line_start):
            return False
        return {
            "reasoning_open": begins or (self._reasoned and self._code.at_line_start),
            "response_open": self._response_may_open,
            "response_close": self._in_response,
            "call_close": self._call_owes_close,
        }.get(kind, True)

    def _finish(self, parts: list[Part]) -> bool:
        """End the present part, because the answer has ended. True: there is text to read after it."""
        held, self._held = self._held, ""
        call = self._call
        if call is not None:
            if self._state in ("tail", "function_end"):
                self._held = held
            else:
                call.add(held)
            cut_off = self._cut_off and self._state not in ("tail", "function_end")
            self._end_call(parts, closed=not self._held, cut_off=cut_off)
            return True
        if self._state in ("begin", "info"):
            if self._cut_off:
                raw = "".join(self._waiting[1:]) + held  # after the marker
                self._waiting.clear()
                self._end_cite(parts)
                parts.append(unreadable(raw, CUT_OFF))
            else:
                self._state = self._outer
                self._show(self._take_waiting() + held, parts)
        elif self._state == "lead":
            waited = self._take_waiting() + held
            self._state = "answer"
            self._show(self._lead_text(waited) if self._beginning or waited.strip(SPACE) else "", parts)
        elif self._state == "answer":
            self._show(self._take_waiting() + held, parts)
        elif self._state == "appendix":
            self._appendix.append(held)
            self._end_appendix(parts)
        self._end_cite(parts)
        return False

    # Text

    def _take(self, text: str, parts: list[Part]) -> None:
        """Take ``text``, which no token of the present state is in."""
        if not text:
            return
        if self._state == "info":
            self._waiting.append(text)
            return
        if self._call is not None:
            self._call.add(text)
            return
        self._code.feed(text)
        if self._state == "appendix":
            self._appendix.append(text)
            return
        # White space waits, because a marker that follows removes it.
        shown = text.rstrip(SPACE)
        if shown:
            self._show(self._take_waiting() + shown, parts)
        self._waiting.append(text[len(shown) :])

    def _show(self, text: str, parts: list[Part]) -> None:
        reasoning = self._state == "reasoning"
        if reasoning and not self._reasoning_shown:
            text = text.lstrip(SPACE)
        if not text:
            return
        if reasoning:
            self._reasoning_shown = True
            parts.append(Reasoning(text))
        else:
            self._shown += len(text)
            parts.append(Text(text))

    def _take_waiting(self) -> str:
        waited = "".join(self._waiting)
        self._waiting.clear()
        return waited

    def _lead_text(self, held: str) -> str:
        # White space after a marker is dropped, unless there is text on both sides.
        return held if self._beginning or self._shown else held.lstrip(SPACE)

    def _no_mark(self, parts: list[Part]) -> None:
        """Ordinary text follows the white space of "lead"."""
        waited = self._lead_text(self._take_waiting())
        self._code.feed(waited)
        self._waiting.append(waited)
        self._state, self._response_may_open, self._beginning = "answer", False, False

    # Reasoning, answer, lists

    def _enter(self, state: Position, parts: list[Part]) -> None:
        """Go to ``state`` after a marker."""
        self._waiting.clear()
        self._end_cite(parts)
        self._state, self._beginning, self._response_may_open = state, False, False
        self._code = CodeSpans()

    def _open_reasoning(self, kind: str, token: str, parts: list[Part]) -> bool:
        self._enter("reasoning", parts)
        self._reasoned, self._reasoning_shown = True, False
        return True

    def _close_reasoning(self, kind: str, token: str, parts: list[Part]) -> bool:
        self._enter("lead", parts)
        self._reasoned = self._in_response = self._response_may_open = True
        self._close_may_follow = False
        return True

    def _open_response(self, kind: str, token: str, parts: list[Part]) -> bool:
        self._enter("lead", parts)
        self._in_response = True
        return True

    _close_response = _open_response

    def _drop_close(self, kind: str, token: str, parts: list[Part]) -> bool:
        self._call_owes_close = False
        return True

    def _open_appendix(self, kind: str, token: str, parts: list[Part]) -> bool:
        if self._state == "appendix":
            self._end_appendix(parts)
        self._enter("appendix", parts)
        self._kind = "citations" if kind == "citations" else "hallucinations"
        self._code.feed(token)
        return True

    def _end_appendix(self, parts: list[Part]) -> None:
        text = "".join(self._appendix).strip()
        self._appendix.clear()
        if text:
            parts.append(Appendix(self._kind, text))

    def _open_key(self, kind: str, token: str, parts: list[Part]) -> bool:
        self._show(self._take_waiting(), parts)
        self._end_cite(parts)
        self._state = "key"
        return True

    def _close_cite(self, kind: str, token: str, parts: list[Part]) -> bool:
        self._show(self._take_waiting(), parts)
        self._end_cite(parts)
        return True

    def _end_cite(self, parts: list[Part]) -> None:
        if self._cited is not None:
            parts.append(Citation(*self._cited, self._shown))
            self._cited = None

    def _read_key(self, parts: list[Part]) -> bool:
        """Read the key of a cited document. False: the key is incomplete."""
        dialect = self._dialect
        key, close, rest = self._held.partition(dialect.key_close)
        begins = key.lstrip(" ").startswith(dialect.key_open) or not key.strip(" ")
        match = SOURCE_KEY.fullmatch(key) if begins and close and len(key) <= MAX_KEY else None
        if match:
            self._held, self._state = rest, "answer"
            self._cited = (match[1], self._shown)
            if not dialect.of("cite_close"):
                self._end_cite(parts)
            return True
        if begins and not close and "\n" not in key and len(key) <= MAX_KEY + len(dialect.key_close):
            if not self._ending:
                return False
            if dialect.key_open and key.strip(" "):
                self._held = ""  # an incomplete key has no meaning for the reader
        self._state = "answer"
        if not dialect.of("cite_close"):
            # The marker is ordinary text, unlike the control tokens that enclose a cited text.
            self._show(dialect.of("cite_open")[0], parts)
        return True

    # Calls

    def _open_call(self, kind: str, token: str, parts: list[Part]) -> bool:
        waited = self._take_waiting()
        self._waiting.append((self._lead_text(waited) if self._state == "lead" else waited) + token)
        self._outer = "reasoning" if self._state == "reasoning" else "answer"
        self._state = "begin"
        return True

    def _no_call(self, parts: list[Part]) -> None:
        """No call follows the marker, so both are ordinary text."""
        self._state, self._beginning = self._outer, False
        self._take(self._take_waiting(), parts)

    def _begin_fence(self, kind: str, token: str, parts: list[Part]) -> bool:
        self._waiting.append(token)
        self._state = "info"
        return True

    def _end_info(self, kind: str, token: str, parts: list[Part]) -> bool:
        self._waiting.append(token)
        self._state = "begin"
        return True

    def _bare_call(self, kind: str, token: str, parts: list[Part]) -> bool:
        waited = self._take_waiting()
        self._waiting.append(self._lead_text(waited) if self._state == "lead" else waited)
        self._outer = "reasoning" if self._state == "reasoning" else "answer"
        if kind == "bare_python":
            return self._begin_json("python", token, parts, marked=False)
        self._held = token.removeprefix(SYNTAX["function"][0]) + self._held
        return self._begin_xml(kind, SYNTAX["function"][0], parts)

    def _begin_json(self, kind: str, token: str, parts: list[Part], marked: bool = True) -> bool:
        self._call = _Call(self._take_waiting(), "python" if kind == "python" else "json", marked)
        self._end_cite(parts)
        self._call.add(token)
        self._call.depth = 1
        self._state = "json"
        return True

    def _begin_xml(self, kind: str, token: str, parts: list[Part]) -> bool:
        call = self._call = _Call(self._take_waiting(), "xml")
        self._state = "xml"
        if complete := self._open_tag("function", token, parts):
            self._end_cite(parts)
        if not call.tags:
            self._call, self._state = None, "begin"
            self._waiting.append(call.before + "".join(call.text))
        if complete and not call.tags:
            self._no_call(parts)
        return complete

    def _call_now(self) -> _Call:
        assert self._call is not None
        return self._call

    def _keep(self, kind: str, token: str, parts: list[Part]) -> bool:
        self._call_now().add(self._take_waiting() + token)
        return True

    def _wait(self, kind: str, token: str, parts: list[Part]) -> bool:
        self._waiting.append(token)
        return True

    def _open_string(self, kind: str, token: str, parts: list[Part]) -> bool:
        self._call_now().quote, self._state = token, "string"
        return self._keep(kind, token, parts)

    def _close_string(self, kind: str, token: str, parts: list[Part]) -> bool:
        if token == self._call_now().quote:
            self._state = "json"
        return self._keep(kind, token, parts)

    def _open_bracket(self, kind: str, token: str, parts: list[Part]) -> bool:
        self._call_now().depth += 1
        return self._keep(kind, token, parts)

    def _another(self, kind: str, token: str, parts: list[Part]) -> bool:
        self._state = "json"
        return self._open_bracket(kind, token, parts)

    def _close_bracket(self, kind: str, token: str, parts: list[Part]) -> bool:
        call = self._call_now()
        call.depth -= 1
        if not call.depth:
            self._state = "tail"
        return self._keep(kind, token, parts)

    def _open_tag(self, kind: str, token: str, parts: list[Part]) -> bool:
        """Read a tag with a name. False: the name is incomplete."""
        call, held = self._call_now(), self._held
        match = TAG_NAME.match(held)
        if match is None and len(held) <= MAX_TAG_NAME and not set("<>\n") & set(held):
            self._held = token + held
            return False
        name = match[1].strip().strip("\"'").strip() if match else ""
        waited = self._take_waiting()
        call.add(waited)
        in_value = self._state == "value"
        if not name or (in_value and not self._starts_parameter(call, name)):
            if self._state in ("parameter_end", "function_end"):
                self._return_to_value(call)
            call.add(token)
            return True
        assert match is not None
        self._held = held[match.end() :]
        start = call.size
        call.add(token + match[0])
        call.tags.append(Tag("function" if kind == "function" else "parameter", name, start, call.size))
        self._state = "xml" if kind == "function" else "value"
        call.nested = 0
        return True

    def _starts_parameter(self, call: _Call, name: str) -> bool:
        """Whether a tag inside a value starts the next parameter, so that the closing tag before it is missing."""
        function = next(tag.name for tag in reversed(call.tags) if tag.kind == "function")
        tool = next((tool for tool in self._tools if tool.name == function), None)
        known = tool.parameters.get("properties") if tool else None
        given = [tag.name for tag in call.tags if tag.kind == "parameter"]
        if call.nested or name in given or (isinstance(known, dict) and known and name not in known):
            return False
        return call.at_line_start() or (name in (known or {}) and call.text[-1][-1] not in " \t`\"'(")

    def _end_parameter(self, kind: str, token: str, parts: list[Part]) -> bool:
        return self._close_tag(token, "parameter_end")

    def _end_function(self, kind: str, token: str, parts: list[Part]) -> bool:
        return self._close_tag(token, "function_end")

    def _close_tag(self, token: str, state: Position) -> bool:
        call = self._call_now()
        call.add(self._take_waiting())
        if not call.nested:
            call.tags.append(Tag("close", "", call.size, call.size + len(token)))
            self._state = state
        call.add(token)
        return True

    def _return_to_value(self, call: _Call) -> None:
        while call.tags[-1].kind == "close":
            call.tags.pop()
        self._state = "value" if call.tags[-1].kind == "parameter" else "xml"

    def _back_to_value(self, parts: list[Part]) -> None:
        """Text follows a closing tag, so the tag is a part of the value."""
        call = self._call_now()
        call.add(self._take_waiting())
        self._return_to_value(call)

    def _text_after(self, parts: list[Part]) -> None:
        """Text follows the end of a function: it is a part of the last value, or the call lacks its closing marker."""
        call = self._call_now()
        if not any(tag.kind == "parameter" for tag in call.tags):
            self._end_call(parts)
            return
        self._doubt(call, closes=True)
        self._back_to_value(parts)

    def _doubt(self, call: _Call, closes: bool) -> None:
        if call.doubt is None:
            call.doubt, call.doubt_closes = (call.size, tuple(call.tags)), closes

    def _doubt_close(self, kind: str, token: str, parts: list[Part]) -> bool:
        call = self._call_now()
        if call.nested:
            call.nested -= 1
        else:
            self._doubt(call, closes=True)
        return self._keep(kind, token, parts)

    def _doubt_open(self, kind: str, token: str, parts: list[Part]) -> bool:
        call = self._call_now()
        if self._state == "value":
            if call.nested or (call.doubt is not None and call.doubt_closes):
                self._held = token + self._held
                self._end_call(parts)
                return True
            self._doubt(call, closes=False)
            call.nested = 1
        return self._keep(kind, token, parts)

    def _doubt_thinking(self, kind: str, token: str, parts: list[Part]) -> bool:
        if self._outer == "reasoning" or self._close_may_follow:
            self._doubt(self._call_now(), closes=True)
        return self._keep(kind, token, parts)

    def _close_call(self, kind: str, token: str, parts: list[Part]) -> bool:
        self._held = token + self._held
        self._end_call(parts, closed=True)
        return True

    _next_call = _close_call

    def _end_thinking_call(self, kind: str, token: str, parts: list[Part]) -> bool:
        if self._outer == "reasoning" or self._close_may_follow:
            return self._close_call(kind, token, parts)
        if self._state not in SKIPS:
            return self._keep(kind, token, parts)
        self._held = token + self._held
        getattr(self, f"_{SKIPS[self._state]}")(parts)
        return True

    def _end_of_call(self, parts: list[Part]) -> None:
        self._end_call(parts)

    def _end_call(self, parts: list[Part], closed: bool = False, cut_off: bool = False) -> None:
        """End the call, and go on with the text after it, which is in ``_waiting`` and ``_held``.

        ``closed``: no text follows directly, so what waits is a part of the call.
        """
        call = self._call_now()
        bare_tail = not call.marked and self._held and "\n" not in "".join(self._waiting)
        calls = None if bare_tail else self._calls_in(call, cut_off)
        wrong = self._state == "value" or any(made.error for made in calls or ())
        if calls is not None and call.doubt is not None and wrong:
            self._held = call.end_at_doubt() + self._take_waiting() + self._held
            calls = self._calls_in(call, cut_off=False)
        self._call, self._state = None, "lead"
        self._code = CodeSpans()
        if calls is None:
            self._state, self._beginning = self._outer, False
            self._take(call.before + "".join(call.text) + self._take_waiting(), parts)
            return
        if closed:
            self._waiting.clear()
        self._beginning, self._call_owes_close = False, call.marked
        self._close_may_follow = self._close_may_follow or self._outer == "reasoning"
        self._response_may_open = False
        parts.extend(calls)

    def _calls_in(self, call: _Call, cut_off: bool) -> list[ToolCall] | None:
        """Return the calls, or None if the text is not a call."""
        raw = "".join(call.text).strip()
        if call.form == "python":
            return None if cut_off else read_python(raw, self._tools)
        if cut_off:
            return [unreadable(raw, CUT_OFF)]
        if call.form == "xml":
            return read_xml("".join(call.text), call.tags, self._tools)
        calls, rest = read_calls(raw.removesuffix("```"), self._tools, repair=True)
        extra = rest.strip("}]` \n,")
        return [*calls, unreadable(extra, CUT_OFF)] if extra else calls
