"""The chunks of another server's stream to the events of an answer. Knows no network.

Whatever the chunks hold: they are other people's JSON, so a field of an unexpected type counts as absent.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

from granite_demo.backends.response_events import Visible
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
"""Others are a stop."""
UNKNOWN_ID = -1


class Reader:
    """Reads one answer: ``feed`` each chunk, then ``end``."""

    def __init__(
        self, dialect: Dialect, request: GenerationRequest, arrived: float, starts_in_reasoning: bool = False
    ) -> None:
        """``arrived`` is when the request came, by perf_counter."""
        self.ended: str | None = None
        """The server's finish reason, once it is told."""
        self.parsed_there = False
        """Whether the server itself tells the thinking from the answer."""
        self._dialect = dialect if request.calls else dialect.without_calls()
        self._tools = request.tools
        self._starts_in_reasoning = starts_in_reasoning
        self._parser: ResponseParser | None = None
        self._visible = Visible(request.sampling.stop)
        self._calls: dict[int, dict[str, str]] = {}
        self._arrived = arrived
        self._first: float | None = None
        self._thought = arrived
        self._count = 0
        self._reasoned = 0
        self._usage: dict[str, Any] = {}

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._visible.hit

    @property
    def first(self) -> float | None:
        """When the first token came, by perf_counter."""
        return self._first

    def feed(self, chunk: dict[str, Any]) -> Iterator[StreamEvent]:
        """The events that ``chunk`` brings; none before the first token."""
        usage = chunk.get("usage")
        self._usage = usage if isinstance(usage, dict) else self._usage
        choice = _first_of(chunk.get("choices"))
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {"content": choice.get("text")}
        scored = list(_scored(choice.get("logprobs")))
        thinking = _text(delta.get("reasoning_content")) or _text(delta.get("reasoning"))
        text, calls = _text(delta.get("content")), _list(delta.get("tool_calls"))
        if self._parser is None and (thinking or self.parsed_there):
            text = text.lstrip()  # what parts the answer from the thinking
        if thinking or text or calls or scored:
            self._count += max(1, len(scored))
            self._first = self._first or time.perf_counter()
            for token in scored:
                yield TokenScored(token)
            if thinking:
                self.parsed_there = True
                self._reasoned, self._thought = self._count, time.perf_counter()
                yield ReasoningDelta(thinking, self._count)
            if text:
                yield from self._parse(text)
            elif not thinking:
                yield TextDelta("", self._count)  # which tells the count
        for call in calls:
            self._add_call(call)
        if isinstance(ended := choice.get("finish_reason"), str):
            self.ended = ended

    def _parse(self, text: str) -> Iterator[StreamEvent]:
        if self._parser is None:
            opened = self._starts_in_reasoning and not self.parsed_there
            # What the server has parsed holds no marks of thinking, and what looks like one is the answer's own.
            self._parser = ResponseParser(self._dialect, starts_in_reasoning=opened, tools=self._tools)
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
        """The last events, a Finish last of all; ``ended`` is why, where the server has not told it."""
        parser = self._parser or ResponseParser(PLAIN)
        yield from self._visible.end(parser.flush(), self._count)
        reason = ended or REASONS.get(self.ended or "", "stop")
        if not self.stopped:
            for _, call in sorted(self._calls.items()):
                read = _read_call(call["name"], call["arguments"], cut=reason in ("length", "stopped"))
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
        told = _number(details.get("reasoning_tokens"), 0) if isinstance(details, dict) else 0
        # Where the server does not tell, the chunks do: they are tokens, or about the same share of them.
        reasoning = told or round(self._reasoned * completion / max(1, self._count))
        return Usage(_number(self._usage.get("prompt_tokens"), 0), completion, reasoning)


def scored_prompt(logprobs: Any) -> list[ScoredToken]:
    """The tokens of a text that a server has echoed with their log probabilities."""
    return list(_scored(logprobs))


def _scored(logprobs: Any) -> Iterator[ScoredToken]:
    if not isinstance(logprobs, dict):
        return
    for item in _list(logprobs.get("content")):  # of a chat
        if isinstance(item, dict):
            tops = [top for top in _list(item.get("top_logprobs")) if isinstance(top, dict)]
            others = [(_text(top.get("token")), top.get("logprob")) for top in tops]
            yield _token(item.get("token"), item.get("logprob"), others)
    numbers, tops = _list(logprobs.get("token_logprobs")), _list(logprobs.get("top_logprobs"))
    for index, token in enumerate(_list(logprobs.get("tokens"))):  # of a completion
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
        return unreadable(arguments, "The call names no tool, or its arguments are no object.")
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
