"""Collects the events of one answer, and makes the note under it."""

from dataclasses import dataclass, field

from granite_demo.types.events import (
    Appendix,
    Citation,
    Dropped,
    Finish,
    Queued,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
    TokenScored,
    ToolCalled,
)
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.messages import ToolCall

_REASONS = {
    "stop": "finished (stop)",
    "length": "cut at the token limit (length)",
    "tool_calls": "calls a tool",
    "stopped": "stopped",
}


@dataclass(slots=True)
class Answer:
    """The state of an answer that is received event by event. Times are in seconds after the request."""

    text: str = ""
    thinking: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    citations: list[Citation] = field(default_factory=list)
    appendices: list[Appendix] = field(default_factory=list)
    scored: list[ScoredToken] = field(default_factory=list)
    """The tokens with their log probabilities, if the request asks for them."""
    ends: list[int] = field(default_factory=list)
    """The length of the text in characters after each token of ``scored``."""
    dropped: int = 0
    """The number of messages that were dropped to fit the context."""
    written: int = 0
    """The number of tokens before the answer was continued."""
    tokens: int = 0
    thinking_tokens: int = 0
    thinking_start: float | None = None
    thinking_end: float | None = None
    """None until the thinking ends."""
    ttft: float | None = None
    finish: Finish | None = None
    ahead: int | None = None
    """Requests before this one in the queue of the engine. None: it did not wait."""

    def add(self, events: list[StreamEvent], elapsed: float) -> None:
        """Add ``events``, which came ``elapsed`` seconds after the request."""
        # New lists for each batch, so that a reader keeps the lists that it has.
        self.scored, self.ends = list(self.scored), list(self.ends)
        for event in events:
            if isinstance(event, TextDelta | ReasoningDelta):
                self._grow(event, elapsed)
            elif isinstance(event, TokenScored):
                self.scored.append(event.token)
            elif isinstance(event, ToolCalled):
                self.calls = [*self.calls, event.call]
            elif isinstance(event, Citation):
                self.citations = [*self.citations, event]
            elif isinstance(event, Appendix):
                self.appendices = [*self.appendices, event]
            elif isinstance(event, Dropped):
                self.dropped = event.messages
            elif isinstance(event, Queued):
                self.ahead = event.ahead
            else:
                self._end(event, elapsed)

    def _grow(self, event: TextDelta | ReasoningDelta, elapsed: float) -> None:
        self.tokens = event.completion_tokens
        if self.ttft is None:
            self.ttft = elapsed
        if isinstance(event, ReasoningDelta):
            self.thinking += event.text
            self.thinking_tokens = event.completion_tokens
            self.thinking_start = elapsed if self.thinking_start is None else self.thinking_start
        else:
            if self.scored:
                self.ends += [len(self.text)] * (event.completion_tokens - len(self.ends))
            self.text += event.text
            if self.ends:
                self.ends[-1] = len(self.text)
            if self.thinking_start is not None and self.thinking_end is None:
                self.thinking_end = elapsed

    def _end(self, event: Finish, elapsed: float) -> None:
        self.finish = event
        self.tokens = event.usage.completion_tokens
        if event.usage.completion_tokens:
            self.ttft = event.timings.ttft
        if self.thinking_start is not None and self.thinking_end is None:
            self.thinking_end = elapsed
        if event.usage.reasoning_tokens:
            self.thinking_tokens = event.usage.reasoning_tokens

    def thinking_seconds(self, elapsed: float) -> float:
        """Return the duration of the thinking until now."""
        if self.finish is not None and self.finish.timings.reasoning:
            return self.finish.timings.reasoning
        if self.thinking_start is None:
            return 0.0
        return (elapsed if self.thinking_end is None else self.thinking_end) - self.thinking_start

    def note(self, elapsed: float) -> str:
        """Return the note: tokens, time to first token, speed and finish reason, if known."""
        if self.ttft is None:
            words = waiting_words(self.ahead)
            return f"{words} · {elapsed:.0f} s" if elapsed >= 1 else words
        parts = [f"{self.tokens:,} token{'s' * (self.tokens != 1)}", f"{self.ttft:.2f} s to first token"]
        rate = self._rate(elapsed)
        if rate is not None:
            parts.append(f"{rate:.1f} tokens/s")
        if self.finish is not None:
            parts.append(_REASONS[self.finish.reason])
            if self.finish.reason == "length" and self.thinking and not self.text:
                parts.append("the answer did not begin: raise Max new tokens in Sampling")
            if self.finish.seed is not None:
                parts.append(f"seed {self.finish.seed}")
        if self.dropped:
            parts.append(f"left out to fit the context: the oldest {self.dropped:,} message{'s' * (self.dropped != 1)}")
        return " · ".join(parts)

    def stopped_note(self, elapsed: float) -> str:
        """Return the note under an answer that the visitor stopped."""
        if self.ttft is None:
            return "stopped"
        # The Finish says "stopped", or another reason if the answer ended at the same time.
        return self.note(elapsed) if self.finish is not None else f"{self.note(elapsed)} · stopped"

    def _rate(self, elapsed: float) -> float | None:
        if self.finish is not None:
            return self.finish.timings.decode_rate(self.tokens)
        seconds = elapsed - (self.ttft or 0.0)
        new = self.tokens - self.written
        return (new - 1) / seconds if new > 1 and seconds > 0.2 else None


def waiting_words(ahead: int | None) -> str:
    """Return the text before the first token. ``ahead`` is the number of requests before this one, or None."""
    if ahead is None:
        return "Waiting for the first token"
    return f"Waiting: {ahead:,} request{'s' * (ahead != 1)} ahead" if ahead else "Waiting: next in line"
