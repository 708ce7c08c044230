"""Converts the chunks of the stream of another server to the events of an answer.

The JSON of other servers can be wrong, so a field of an unexpected type counts as absent.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

from granite_demo.backends.response_events import VisibleEvents
from granite_demo.outputs.dialects import PLAIN, Dialect
from granite_demo.outputs.parts import Reasoning
from granite_demo.outputs.response_parser import ResponseParser
from granite_demo.outputs.tool_calls import CUT_OFF, unreadable
from granite_demo.types.events import (
    Finish,
    FinishReason,
    Provenance,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
    Timings,
    TokenScored,
    ToolCalled,
    Usage,
)
from granite_demo.types.logprobs import ScoredToken, TokenAlternative
from granite_demo.types.messages import ToolCall
from granite_demo.types.requests import GenerationRequest

REASONS: dict[str, FinishReason] = {"length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls"}
"""All other finish reasons of the server mean ``stop``."""
UNKNOWN_ID = -1


class Reader:
    """Reads one answer. Call ``feed`` for each chunk, then ``end``."""

    def __init__(
        self, dialect: Dialect, request: GenerationRequest, arrived: float, starts_in_reasoning: bool = False
    ) -> None:
        """``arrived`` is the perf_counter time of the request."""
        self.ended: str | None = None
        """The finish reason of the server, or None before it is received."""
        self.server_parses_reasoning = False
        """Whether the server sends the thinking in a separate field."""
        self._dialect = dialect.only(calls=request.calls, lists=request.lists)
        self._tools = request.tools
        self._starts_in_reasoning = starts_in_reasoning
        self._parser: ResponseParser | None = None
        self._visible = VisibleEvents(request.sampling.stop)
        self._calls: dict[int, dict[str, str]] = {}
        self._arrived = arrived
        self._first: float | None = None
        self._thought = arrived
        self._count = 0
        self._reasoned = 0
        self._usage: dict[str, Any] = {}

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the answer."""
        return self._visible.hit

    @property
    def first(self) -> float | None:
        """The perf_counter time of the first token, or None before it."""
        return self._first

    def feed(self, chunk: dict[str, Any]) -> Iterator[StreamEvent]:
        """Yield the events of ``chunk``. There are none before the first token."""
        usage = chunk.get("usage")
        self._usage = usage if isinstance(usage, dict) else self._usage
        choice = _first_of(chunk.get("choices"))
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {"content": choice.get("text")}
        scored = list(_scored(choice.get("logprobs")))
        thinking = _text(delta.get("reasoning_content")) or _text(delta.get("reasoning"))
        text, calls = _text(delta.get("content")), _list(delta.get("tool_calls"))
        if self._parser is None and (thinking or self.server_parses_reasoning):
            text = text.lstrip()  # whitespace between the thinking and the answer
        if thinking or text or calls or scored:
            self._count += max(1, len(scored))
            self._first = self._first or time.perf_counter()
            for token in scored:
                yield TokenScored(token)
            if thinking:
                self.server_parses_reasoning = True
                self._reasoned, self._thought = self._count, time.perf_counter()
                yield ReasoningDelta(thinking, self._count)
            if text:
                yield from self._parse(text)
            elif not thinking:
                yield TextDelta("", self._count)  # to update the token count
        for call in calls:
            self._add_call(call)
        if isinstance(ended := choice.get("finish_reason"), str):
            self.ended = ended

    def _parse(self, text: str) -> Iterator[StreamEvent]:
        if self._parser is None:
            starts_in_reasoning = self._starts_in_reasoning and not self.server_parses_reasoning
            # If the server parses the thinking, a marker in the text is part of the answer.
            self._parser = ResponseParser(self._dialect, starts_in_reasoning=starts_in_reasoning, tools=self._tools)
        thinking = self._parser.in_reasoning
        parts = self._parser.feed(text)
        if thinking or self._parser.in_reasoning or any(isinstance(part, Reasoning) for part in parts):
            self._reasoned, self._thought = self._count, time.perf_counter()
        yield from self._visible.events(parts, self._count, self._parser.in_reasoning)
        if self.stopped:
            self._parser.discard()

    def _add_call(self, delta: Any) -> None:
        function = delta.get("function") if isinstance(delta, dict) else None
        if not isinstance(function, dict):
            return
        index = delta.get("index")
        if not isinstance(index, int):
            index = len(self._calls)
        call = self._calls.setdefault(index, {"name": "", "arguments": ""})
        for name in call:
            call[name] += _text(function.get(name))

    def end(self, seed: int | None, provenance: Provenance, ended: FinishReason | None = None) -> Iterator[StreamEvent]:
        """Yield the last events, and Finish as the last. ``ended`` replaces the finish reason of the server."""
        parser = self._parser or ResponseParser(PLAIN)
        reason = ended or REASONS.get(self.ended or "", "stop")
        cut_off = reason in ("length", "stopped")
        yield from self._visible.end(parser.flush(cut_off=cut_off), self._count)
        if not self.stopped:
            for _, call in sorted(self._calls.items()):
                read = _read_call(call["name"], call["arguments"], cut=cut_off)
                self._visible.called = self._visible.called or not read.error
                yield ToolCalled(read)
        if reason == "tool_calls" and not self._visible.called:
            reason = "stop"
        total = time.perf_counter()
        first = self._first or total
        timings = Timings(first - self._arrived, total - self._arrived, max(0.0, self._thought - first))
        yield Finish(self._visible.reason(reason), self._counted(), timings, seed, provenance=provenance)

    def _counted(self) -> Usage:
        completion = _number(self._usage.get("completion_tokens"), self._count)
        details = self._usage.get("completion_tokens_details")
        reported = _number(details.get("reasoning_tokens"), 0) if isinstance(details, dict) else 0
        # Without a number from the server, the share of the chunks is an estimate.
        reasoning = reported or round(self._reasoned * completion / max(1, self._count))
        return Usage(_number(self._usage.get("prompt_tokens"), 0), completion, reasoning)


def scored_prompt(logprobs: Any) -> list[ScoredToken]:
    """Return the tokens of an echoed text with their log probabilities."""
    return list(_scored(logprobs))


def _scored(logprobs: Any) -> Iterator[ScoredToken]:
    if not isinstance(logprobs, dict):
        return
    for item in _list(logprobs.get("content")):  # the format of chat completions
        if isinstance(item, dict):
            tops = [top for top in _list(item.get("top_logprobs")) if isinstance(top, dict)]
            others = [(_text(top.get("token")), top.get("logprob")) for top in tops]
            yield _token(item.get("token"), item.get("logprob"), others)
    numbers, tops = _list(logprobs.get("token_logprobs")), _list(logprobs.get("top_logprobs"))
    for index, token in enumerate(_list(logprobs.get("tokens"))):  # the format of completions
        number = numbers[index] if index < len(numbers) else None
        found = tops[index] if index < len(tops) else None
        yield _token(token, number, list(found.items()) if isinstance(found, dict) else [])


def _token(text: Any, logprob: Any, others: list[tuple[str, Any]]) -> ScoredToken:
    known = [(other, value) for other, value in others if isinstance(value, int | float)]
    known.sort(key=lambda pair: -pair[1])
    value = float(logprob) if isinstance(logprob, int | float) else None
    alternatives = tuple(TokenAlternative(UNKNOWN_ID, other, float(number)) for other, number in known)
    return ScoredToken(UNKNOWN_ID, _text(text), value, alternatives=alternatives)


def _read_call(name: str, arguments: str, cut: bool) -> ToolCall:
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        why = CUT_OFF if cut else f"The call cannot be read as JSON: {error}."
        return ToolCall(name, arguments, why)
    if not isinstance(value, dict) or not name:
        return unreadable(arguments, "The call has no tool name, or its arguments are not an object.")
    return ToolCall(name, arguments or "{}")


def _first_of(choices: Any) -> dict[str, Any]:
    choice = choices[0] if isinstance(choices, list) and choices else {}
    return choice if isinstance(choice, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any, otherwise: int) -> int:
    known = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if known else otherwise
