"""The tokens of one answer to the events that a reader sees. Knows engines only by their protocol."""

import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from granite_demo.answers import AnswerParser, Part, Reasoning, Text
from granite_demo.dialects import PLAIN, Dialect, find_dialect
from granite_demo.manager import ReadyModel
from granite_demo.messages import ToolCall
from granite_demo.parsing import StopStrings
from granite_demo.sampling_params import SamplingParams
from granite_demo.template_inputs import template_of
from granite_demo.types import (
    Citation,
    Finish,
    FinishReason,
    Provenance,
    Queued,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
    Timings,
    TokenScored,
    ToolCalled,
    Usage,
)

if TYPE_CHECKING:
    from granite_demo.constraints import Matcher

TAIL = 16
"""Tokens at the prompt's end that may hold the opening of the thinking."""


async def answer_events(
    ready: ReadyModel,
    prompt_ids: list[int],
    sampling: SamplingParams,
    arrived: float,
    *,
    dialect: Dialect | None = None,
    provenance: Provenance | None = None,
    raw: bool = False,
    matcher: "Matcher | None" = None,
) -> AsyncGenerator[StreamEvent]:
    """Yield the events of the answer to ``prompt_ids``; ``arrived`` is when the request came, by perf_counter.

    The answer is read by ``dialect``, else by the one of the model's chat template, or with ``raw`` by none at all.
    ``matcher`` says which tokens may come. Where the consumer closes it, which is how a reader stops, what is held back
    is dropped: text that may be half a marker, half a stop string or half a character, white space at the end, and a
    call that is not whole.
    """
    from granite_demo.decoding import IncrementalDecoder, scored_token

    tokenizer = ready.loaded.tokenizer
    dialect = PLAIN if raw else dialect or find_dialect(template_of(tokenizer))
    decoder = IncrementalDecoder(tokenizer, keep=dialect.markers)
    parser = AnswerParser(dialect, thinking_open=opens_thinking(tokenizer, prompt_ids, dialect))
    visible = Visible(sampling.stop)
    reason: FinishReason = "length"
    ids: list[int] = []
    first = thought = arrived
    reasoning_tokens = 0
    async with aclosing(ready.engine.generate(prompt_ids, sampling, matcher)) as tokens:
        async for token in tokens:
            if isinstance(token, Queued):
                yield token
                continue
            ids.append(token.id)
            if len(ids) == 1:
                first = thought = time.perf_counter()
            if token.logprob is not None:
                yield TokenScored(scored_token(tokenizer, token))
            if token.id in ready.loaded.eos_ids:
                reason = "stop"
                break
            thinking = parser.thinking
            parts = parser.feed(decoder.feed(token.id))
            # Thinking stands first, so all tokens up to here belong to it, markers included.
            if thinking or parser.thinking or any(isinstance(part, Reasoning) for part in parts):
                reasoning_tokens, thought = len(ids), time.perf_counter()
            for event in visible.events(parts, len(ids), parser.thinking):
                yield event
            if visible.hit:
                parser.discard()
                break
    for event in visible.end(parser.feed(decoder.flush()) + parser.flush(), len(ids)):
        yield event
    reason = visible.reason(reason)
    timings = Timings(first - arrived, time.perf_counter() - arrived, thought - first)
    seed = sampling.seed if sampling.temperature > 0 else None
    yield Finish(reason, Usage(len(prompt_ids), len(ids), reasoning_tokens), timings, seed, tuple(ids), provenance)


def opens_thinking(tokenizer: Any, prompt_ids: Sequence[int], dialect: Dialect) -> bool:
    """Whether the prompt ends within the thinking, which the answer then goes on with."""
    tail: str = tokenizer.backend_tokenizer.decode(prompt_ids[-TAIL:], skip_special_tokens=False)
    return tail.rstrip().endswith(dialect.think_open)


class Visible:
    """The parts of an answer to its events, up to the first stop string in its text."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = StopStrings(stop)
        self._length = 0
        self._citations: list[Citation] = []
        self.called = False
        """Whether a tool was called in a way that can be read."""

    @property
    def hit(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._stop.hit

    def reason(self, ended: FinishReason) -> FinishReason:
        """Why the answer ended, where its tokens ended by ``ended``."""
        if self.hit:
            return "stop"
        return "tool_calls" if ended == "stop" and self.called else ended

    def events(self, parts: Iterable[Part], count: int, thinking: bool) -> Iterator[StreamEvent]:
        """The events of one token, the ``count``-th. One at least is a delta, for that tells the count."""
        told = False
        for event in self._events(parts, count):
            told = told or isinstance(event, TextDelta | ReasoningDelta)
            yield event
        if not told:
            yield (ReasoningDelta if thinking else TextDelta)("", count)

    def end(self, parts: Iterable[Part], count: int) -> Iterator[StreamEvent]:
        """The last events."""
        yield from self._events(parts, count)
        yield from self._text(self._stop.flush(), count)
        # A stop string may have cut what is cited.
        for citation in self._citations:
            if citation.start < self._length:
                yield replace(citation, end=min(citation.end, self._length))

    def _events(self, parts: Iterable[Part], count: int) -> Iterator[StreamEvent]:
        for part in parts:
            if isinstance(part, Text):
                yield from self._text(self._stop.feed(part.text), count)
            elif isinstance(part, Reasoning):
                yield ReasoningDelta(part.text, count)
            elif isinstance(part, Citation):
                self._citations.append(part)
                yield from self._ready_citations()
            else:
                # What stands before it cannot become a stop string any more.
                yield from self._text(self._stop.flush(), count)
                if self.hit:
                    return
                if isinstance(part, ToolCall):
                    self.called = self.called or not part.error
                    yield ToolCalled(part)
                else:
                    yield part

    def _text(self, text: str, count: int) -> Iterator[StreamEvent]:
        if text:
            self._length += len(text)
            yield TextDelta(text, count)
            yield from self._ready_citations()

    def _ready_citations(self) -> Iterator[StreamEvent]:
        # The text that a citation points to may still be held back for a stop string.
        while self._citations and self._citations[0].end <= self._length:
            yield self._citations.pop(0)
