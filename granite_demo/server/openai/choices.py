"""The common part of chat and completion answers: events in, objects of OpenAI's API out.

A ``Wire`` makes a choice of each event that the client gets. In a stream, each choice is sent in a chunk; otherwise
they are merged at the end.
"""

import secrets
import time
from collections.abc import Iterator
from typing import Any, Protocol

from granite_demo.types.events import Finish, StreamEvent, Usage
from granite_demo.types.logprobs import ScoredToken

LEAST_LOGPROB = -9999.0
"""Replaces the logarithm of 0, which JSON cannot write. OpenAI uses the same value."""
Json = dict[str, Any]


class Choices(Protocol):
    """One answer of a request: converts events to choices, and merges these."""

    def start(self) -> Json | None:
        """The choice before the first event, if there is one."""
        ...

    def of(self, event: StreamEvent) -> Json | None:
        """The choice for ``event``; None if the client gets nothing for it."""
        ...

    def whole(self, parts: list[Json]) -> Json:
        """All choices of the answer, merged."""
        ...


class Wire:
    """The answer to one request, with one or more choices."""

    def __init__(self, kind: str, chunk_kind: str, prefix: str, model: str, choices: list[Any]) -> None:
        self._kind = kind
        self._chunk_kind = chunk_kind
        self._head = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._choices: list[Choices] = choices
        self._usages: list[Usage] = []

    def start(self) -> Iterator[tuple[int, Json]]:
        """Yield (number, choice) for each choice before the first event."""
        for number, choice in enumerate(self._choices):
            if part := choice.start():
                yield number, part

    def of(self, number: int, event: StreamEvent) -> Json | None:
        """The choice for ``event`` of the answer ``number``; None if the client gets nothing for it."""
        if isinstance(event, Finish):
            self._usages.append(event.usage)
        return self._choices[number].of(event)

    def count(self, usage: Usage) -> None:
        """Add tokens that no Finish counts."""
        self._usages.append(usage)

    def usage(self) -> Json:
        """The tokens of all choices. The prompt counts once."""
        prompt = max((usage.prompt_tokens for usage in self._usages), default=0)
        completion = sum(usage.completion_tokens for usage in self._usages)
        reasoning = sum(usage.reasoning_tokens for usage in self._usages)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }

    def chunk(self, choices: list[Json], usage: Json | None = None) -> Json:
        """One event of a stream."""
        counts = {} if usage is None else {"usage": usage}
        return {**self._head, "object": self._chunk_kind, "choices": choices, **counts}

    def whole(self, parts: dict[int, list[Json]]) -> Json:
        """The whole answer, from the choices of each number."""
        choices = [choice.whole(parts.get(number, [])) for number, choice in enumerate(self._choices)]
        return {**self._head, "object": self._kind, "choices": choices, "usage": self.usage()}


def finite(value: float | None) -> float | None:
    """A log probability (natural logarithm) that JSON can write."""
    return None if value is None else max(value, LEAST_LOGPROB)


def chat_logprob(token: ScoredToken) -> Json:
    """One token in the ``logprobs`` of a chat."""
    top = [_logprob(other.text, other.logprob) for other in token.alternatives]
    return {**_logprob(token.text, token.logprob), "top_logprobs": top}


def _logprob(text: str, logprob: float | None) -> Json:
    # The bytes of a token that is a part of a character are unknown: its text is the replacement character.
    return {"token": text, "logprob": finite(logprob), "bytes": None if "\ufffd" in text else list(text.encode())}
