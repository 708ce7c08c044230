"""What chat and completion answers have in common: events in, the objects of OpenAI's API out.

A ``Wire`` makes a choice of each event that says something to the client. Streamed, each goes out in a chunk; else they
are folded together at the end.
"""

import secrets
import time
from collections.abc import Iterator
from typing import Any, Protocol

from granite_demo.types.events import Finish, StreamEvent, Usage
from granite_demo.types.logprobs import ScoredToken

LEAST = -9999.0
"""Stands for the logarithm of 0, which JSON cannot write."""
Json = dict[str, Any]


class Choices(Protocol):
    """One answer of a request: turns events to choices, and a list of those to one."""

    def start(self) -> Json | None:
        """A choice before the first event, if there is one."""
        ...

    def of(self, event: StreamEvent) -> Json | None:
        """The choice that tells of ``event``; None where there is nothing to tell."""
        ...

    def whole(self, parts: list[Json]) -> Json:
        """All of the answer's choices as one."""
        ...


class Wire:
    """The answer to one request, which may have several choices."""

    def __init__(self, kind: str, chunk_kind: str, prefix: str, model: str, choices: list[Any]) -> None:
        self._kind = kind
        self._chunk_kind = chunk_kind
        self._head = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._choices: list[Choices] = choices
        self._usages: list[Usage] = []

    def start(self) -> Iterator[tuple[int, Json]]:
        """(number, choice) of what comes before all events."""
        for number, choice in enumerate(self._choices):
            if part := choice.start():
                yield number, part

    def of(self, number: int, event: StreamEvent) -> Json | None:
        """What ``event`` of the answer with this number tells the client."""
        if isinstance(event, Finish):
            self._usages.append(event.usage)
        return self._choices[number].of(event)

    def count(self, usage: Usage) -> None:
        """Count tokens that no Finish tells of."""
        self._usages.append(usage)

    def usage(self) -> Json:
        """The tokens of all choices; the prompt is counted once."""
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
        told = {} if usage is None else {"usage": usage}
        return {**self._head, "object": self._chunk_kind, "choices": choices, **told}

    def whole(self, parts: dict[int, list[Json]]) -> Json:
        """The whole answer, of the choices by number."""
        choices = [choice.whole(parts.get(number, [])) for number, choice in enumerate(self._choices)]
        return {**self._head, "object": self._kind, "choices": choices, "usage": self.usage()}


def finite(value: float | None) -> float | None:
    """A log probability as JSON can write it."""
    return None if value is None else max(value, LEAST)


def chat_logprob(token: ScoredToken) -> Json:
    """A token of a chat's ``logprobs``."""
    top = [_told(other.text, other.logprob) for other in token.alternatives]
    return {**_told(token.text, token.logprob), "top_logprobs": top}


def _told(text: str, logprob: float | None) -> Json:
    # Of a token that is a part of a character only the replacement mark is known.
    return {"token": text, "logprob": finite(logprob), "bytes": None if "\ufffd" in text else list(text.encode())}
