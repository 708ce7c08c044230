"""Converts the tokens of an engine to the events of one answer."""

import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.backends.response_events import VisibleEvents
from granite_demo.outputs.dialects import PLAIN, Dialect, find_dialect
from granite_demo.outputs.parts import Reasoning
from granite_demo.outputs.response_parser import ResponseParser
from granite_demo.prompts.chat_template import template_of
from granite_demo.types.events import (
    Finish,
    FinishReason,
    Provenance,
    Queued,
    StreamEvent,
    Timings,
    TokenScored,
    Usage,
)
from granite_demo.types.logprobs import Token
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.stop import StoppedError

if TYPE_CHECKING:
    from granite_demo.outputs.structured_output import Matcher


TAIL = 16
"""Tokens at the end of the prompt that can contain the marker that opens the thinking."""


async def answer_events(
    ready: ReadyModel,
    request: GenerationRequest,
    prompt_ids: list[int],
    arrived: float,
    *,
    provenance: Provenance | None = None,
    matcher: "Matcher | None" = None,
    match: "Callable[[list[int]], Awaitable[Matcher | None]] | None" = None,
) -> AsyncGenerator[StreamEvent]:
    """Yield the events of the answer to ``request``. Its max_tokens must be set.

    ``prompt_ids`` ends with the tokens ``request.written`` of a continued answer; their events come with the first new
    token. ``arrived`` is the perf_counter time of the request. ``matcher`` selects the allowed tokens;
    ``match`` makes the one for an answer after a prompt, where a budget has closed the thinking. An answer that is
    stopped, or whose engine fails, ends with the text that was held back and a Finish. Raises GraniteDemoError.
    """
    reader = _AnswerReader(ready, request, prompt_ids, arrived, provenance)
    failure: Exception | None = None
    try:
        sampling = request.sampling
        while True:
            async with aclosing(ready.engine.generate(prompt_ids, sampling, matcher)) as tokens:
                while (token := await request.stop.guard(anext(tokens, None))) is not None:
                    if isinstance(token, Queued):
                        yield token
                        continue
                    reader.take(token)
                    while reader.due:
                        yield reader.due.popleft()
                    if reader.ended or reader.over_budget:
                        break
            left = reader.close_thinking()
            if not left:
                break
            # The engine continues after the mark that closes the thinking. It has the prompt in its cache.
            prompt_ids, sampling = reader.prompt_and_answer(), replace(request.sampling, max_tokens=left)
            matcher = await match(prompt_ids) if match else None
        reader.end(reader.ended or "length")
    except StoppedError:
        reader.end("stopped")
    except Exception as error:
        if not reader.ids:
            raise
        reader.end("stopped")
        failure = error
    while reader.due:
        yield reader.due.popleft()
    if failure:
        raise failure


class _AnswerReader:
    """Reads the tokens of one answer. ``due`` holds the events that are not yielded yet."""

    def __init__(
        self,
        ready: ReadyModel,
        request: GenerationRequest,
        prompt_ids: Sequence[int],
        arrived: float,
        provenance: Provenance | None,
    ) -> None:
        from granite_demo.prompts.tokenizer import Detokenizer, encode

        self._tokenizer = ready.loaded.tokenizer
        self._eos_ids = ready.loaded.eos_ids
        self._written = len(request.written)
        prompt_ids = prompt_ids[: len(prompt_ids) - self._written]
        self._prompt_ids = list(prompt_ids)
        self._sampling = request.sampling
        self._close = encode(self._tokenizer, dialect_of(self._tokenizer, request).end_of_reasoning)
        sampling = request.sampling
        self._seed = sampling.seed if sampling.temperature > 0 else None
        self._provenance = provenance
        dialect = dialect_of(self._tokenizer, request)
        self._decoder = Detokenizer(self._tokenizer, keep=dialect.markers)
        starts_in_reasoning = opens_reasoning(self._tokenizer, prompt_ids, dialect)
        dialect = dialect.only(calls=request.calls, lists=request.lists)
        self._parser = ResponseParser(dialect, starts_in_reasoning=starts_in_reasoning, tools=request.tools)
        self._visible = VisibleEvents(sampling.stop)
        self._arrived = self._first = self._thought = arrived
        self._reasoning_tokens = 0
        self.ids: list[int] = []
        self.due: deque[StreamEvent] = deque()
        self.ended: FinishReason | None = None
        """The reason why no more tokens are necessary. None: more tokens can follow."""
        for index in request.written:
            self.take(Token(index))

    def take(self, token: Token) -> None:
        """Read the next token."""
        from granite_demo.prompts.tokenizer import scored_token

        self.ids.append(token.id)
        count, parser = len(self.ids), self._parser
        if count <= self._written + 1:
            self._first = self._thought = time.perf_counter()
        if token.logprob is not None:
            self.due.append(TokenScored(scored_token(self._tokenizer, token)))
        if token.id in self._eos_ids:
            self.ended = "stop"
            return
        thinking = parser.in_reasoning
        parts = parser.feed(self._decoder.feed(token.id))
        # Thinking is at the start, so all tokens until now belong to it, including markers.
        if thinking or parser.in_reasoning or any(isinstance(part, Reasoning) for part in parts):
            self._reasoning_tokens, self._thought = count, time.perf_counter()
        self.due += self._visible.events(parts, count, parser.in_reasoning)
        if self._visible.hit:
            parser.discard()
            self.ended = "stop"

    @property
    def over_budget(self) -> bool:
        """Whether the answer still thinks after all tokens that it can think with."""
        budget = self._sampling.thinking_token_budget
        return budget is not None and len(self.ids) >= budget and self._parser.in_reasoning and bool(self._close)

    def prompt_and_answer(self) -> list[int]:
        """Return the prompt with all tokens of the answer until now."""
        return [*self._prompt_ids, *self.ids]

    def close_thinking(self) -> int:
        """Close the thinking if it is over the budget. Return how many tokens the answer can then have."""
        most = (self._sampling.max_tokens or 0) + self._written
        if self.ended or not self.over_budget or len(self.ids) + len(self._close) >= most:
            return 0
        for index in self._close:
            self.take(Token(index))
        return most - len(self.ids)

    def end(self, reason: FinishReason) -> None:
        """Add the text that is held back, and the Finish with ``reason``."""
        count, now = len(self.ids), time.perf_counter()
        parts = self._parser.feed(self._decoder.flush()) + self._parser.flush(cut_off=reason != "stop")
        self.due += self._visible.end(parts, count)
        reasoning = max(self._thought - self._first, 0.0)
        timings = Timings(self._first - self._arrived, now - self._arrived, reasoning, self._written)
        usage = Usage(len(self._prompt_ids), count, self._reasoning_tokens)
        reason = self._visible.reason(reason)
        self.due.append(Finish(reason, usage, timings, self._seed, tuple(self.ids), self._provenance))


def dialect_of(tokenizer: Any, request: GenerationRequest) -> Dialect:
    """Return the dialect of the answer to ``request``, with all its markers."""
    return PLAIN if request.raw else find_dialect(template_of(tokenizer))


def opens_reasoning(tokenizer: Any, prompt_ids: Sequence[int], dialect: Dialect) -> bool:
    """Return whether the prompt ends inside the thinking, so that the answer starts in it."""
    tail: str = tokenizer.backend_tokenizer.decode(prompt_ids[-TAIL:], skip_special_tokens=False)
    return tail.rstrip().endswith(dialect.of("reasoning_open"))
