"""Converts the parsed parts of an answer to events."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from granite_demo.outputs.parts import Part, Reasoning, Text
from granite_demo.outputs.stop_strings import StopStrings
from granite_demo.types.events import Citation, FinishReason, ReasoningDelta, StreamEvent, TextDelta, ToolCalled
from granite_demo.types.messages import ToolCall


class VisibleEvents:
    """Converts the parts of one answer to events, until the first stop string in its text."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = StopStrings(stop)
        self._length = 0
        self._citations: list[Citation] = []
        self.called = False
        """Whether there was a valid tool call."""

    @property
    def hit(self) -> bool:
        """Whether a stop string ended the answer."""
        return self._stop.hit

    def reason(self, ended: FinishReason) -> FinishReason:
        """Return the finish reason of an answer whose tokens ended by ``ended``."""
        if self.hit:
            return "stop"
        return "tool_calls" if ended == "stop" and self.called else ended

    def events(self, parts: Iterable[Part], count: int, thinking: bool) -> Iterator[StreamEvent]:
        """Yield the events of token number ``count``. At least one is a delta, because deltas carry the token count."""
        has_delta = False
        for event in self._events(parts, count):
            has_delta = has_delta or isinstance(event, TextDelta | ReasoningDelta)
            yield event
        if not has_delta:
            yield (ReasoningDelta if thinking else TextDelta)("", count)

    def end(self, parts: Iterable[Part], count: int) -> Iterator[StreamEvent]:
        """Yield the last events, from text that was held back for a stop string."""
        yield from self._events(parts, count)
        yield from self._text(self._stop.flush(), count)
        # The stop string can be inside the text of a citation.
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
                # Text before a part of another kind cannot become a stop string any more.
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
        # The text of a citation can still be held back for a stop string.
        while self._citations and self._citations[0].end <= self._length:
            yield self._citations.pop(0)
