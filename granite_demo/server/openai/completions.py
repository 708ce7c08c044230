"""``/v1/completions``: the body to requests, and events to the answer."""

from contextlib import aclosing
from dataclasses import dataclass, replace

from granite_demo.backend import Backend
from granite_demo.errors import EngineError, InvalidRequestError
from granite_demo.server.openai.choices import Json, Wire, finite
from granite_demo.server.openai.errors import RefusedError, about
from granite_demo.server.openai.params import (
    check_able,
    check_model,
    check_stream,
    constraints_of,
    only_constraint,
    sampling_of,
    seed_of,
    served_name,
)
from granite_demo.server.openai.protocol import CompletionRequest
from granite_demo.types.events import Finish, ReasoningDelta, ScoreSummary, StreamEvent, TextDelta, TokenScored, Usage
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.model_status import ModelStatus
from granite_demo.types.requests import GenerationRequest, ScoreRequest

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default."""


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt that is sent back, with its scored tokens if the request has ``logprobs``."""

    text: str
    tokens: int
    scored: tuple[ScoredToken, ...] = ()


def requests_of(body: CompletionRequest, status: ModelStatus) -> list[GenerationRequest]:
    """One request for each of the ``n`` answers. Raises InvalidRequestError."""
    check_model(body.model, status)
    check_stream(body)
    check_able(status, "completion", "prompt")
    first = _request(body, status)
    sampling = first.sampling
    choices = range(body.n or 1)
    return [replace(first, sampling=replace(sampling, seed=seed_of(sampling, choice))) for choice in choices]


def _request(body: CompletionRequest, status: ModelStatus) -> GenerationRequest:
    if body.suffix is not None:
        check_able(status, "fill in the middle", "suffix")
        if body.echo:
            raise RefusedError("echo and suffix cannot be used together.", ("echo",))
    if body.max_tokens == 0 and not body.echo:
        raise RefusedError("max_tokens can be 0 only together with echo.", ("max_tokens",))
    if body.special_tokens:
        check_able(status, "special tokens", "special_tokens")
    sampling = sampling_of(
        body,
        status,
        # For an echo without an answer nothing is generated; the request only checks the values.
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens or 1,
        logprobs=body.logprobs,
        constraint=only_constraint(list(constraints_of(body)), status),
    )
    text, ids = _prompt(body, status)
    special = body.special_tokens is not False and not status.unable_to("special tokens")
    with about("prompt"):
        if text is None:
            return GenerationRequest(prompt_ids=ids, sampling=sampling)
        return GenerationRequest(prompt=text, suffix=body.suffix, special_tokens=special, sampling=sampling)


def _prompt(body: CompletionRequest, status: ModelStatus) -> tuple[str | None, tuple[int, ...] | None]:
    prompt = body.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt, None
    if not isinstance(prompt, list):
        raise RefusedError("The prompt must be a string, or a list of token IDs.", ("prompt",))
    if any(isinstance(part, str | list) for part in prompt):
        raise RefusedError("Several prompts in one request are not supported. Send one request for each.", ("prompt",))
    for place, token in enumerate(prompt):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
            raise RefusedError("A token ID must be a whole number, 0 or more.", ("prompt", place))
    check_able(status, "token ids", "prompt")
    if body.suffix is not None:
        raise RefusedError("A suffix requires a prompt that is a string.", ("suffix",))
    return None, tuple(prompt)


async def echo_of(body: CompletionRequest, request: GenerationRequest, backend: Backend) -> Echo | None:
    """The prompt of ``request`` if ``body`` has ``echo``, else None. Raises GraniteDemoError."""
    if not body.echo:
        return None
    if body.logprobs is None and body.max_tokens != 0 and request.prompt is not None:
        return Echo(request.prompt, 0)
    with about("echo"):
        if why := backend.status().unable_to("scoring"):
            raise InvalidRequestError(f"This use of echo is not available here. {why}")
    asked = ScoreRequest(request.prompt or "", request.prompt_ids, body.logprobs or 0, request.special_tokens)
    tokens: list[ScoredToken] = []
    async with aclosing(backend.score(asked)) as events:
        async for event in events:
            if isinstance(event, ScoredToken):
                tokens.append(event)
            elif isinstance(event, ScoreSummary):
                text = "".join(token.text for token in tokens) if request.prompt is None else request.prompt
                return Echo(text, event.tokens, tuple(tokens) if body.logprobs is not None else ())
    raise EngineError("The scoring of the prompt ended before it was finished. Try again.")


def wire_of(body: CompletionRequest, status: ModelStatus, echo: Echo | None) -> Wire:
    """The writer of the answer to ``body``."""
    only = body.max_tokens == 0
    choices = [CompletionChoices(number, echo, only) for number in range(body.n or 1)]
    wire = Wire("text_completion", "text_completion", "cmpl", served_name(status), choices)
    if only and echo:
        wire.count(Usage(echo.tokens, 0))
    return wire


class CompletionChoices:
    """One answer of a completion. Its choices have pieces of text."""

    def __init__(self, index: int, echo: Echo | None, only: bool) -> None:
        """``only``: the answer is the echo alone."""
        self._index = index
        self._echo = echo
        self._only = only
        self._scored: list[ScoredToken] = []
        self._offset = 0

    def start(self) -> Json | None:
        """The echo."""
        if self._echo is None:
            return None
        self._scored += self._echo.scored
        choice = self._choice(self._echo.text, "length" if self._only else None)
        self._offset = len(self._echo.text)
        return choice

    def of(self, event: StreamEvent) -> Json | None:
        """See ``Choices.of``."""
        match event:
            case TokenScored(token):
                self._scored.append(token)
                return None
            case TextDelta(text) | ReasoningDelta(text):
                return self._choice(text) if text or self._scored else None
            case Finish():
                return self._choice("", event.reason)
        return None

    def _choice(self, text: str, reason: str | None = None) -> Json:
        scored, self._scored = self._scored, []
        logprobs = self._logprobs(scored) if scored else None
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, scored: list[ScoredToken]) -> Json:
        offsets = []
        for token in scored:
            offsets.append(self._offset)
            self._offset += len(token.text)
        return {
            "tokens": [token.text for token in scored],
            "token_logprobs": [finite(token.logprob) for token in scored],
            "top_logprobs": [_top(token) for token in scored],
            "text_offset": offsets,
        }

    def whole(self, parts: list[Json]) -> Json:
        """See ``Choices.whole``."""
        found = [part["logprobs"] for part in parts if part["logprobs"]]
        logprobs = {name: [value for part in found for value in part[name]] for name in found[0]} if found else None
        text = "".join(part["text"] for part in parts)
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": parts[-1]["finish_reason"]}


def _top(token: ScoredToken) -> dict[str, float | None] | None:
    if token.logprob is None:
        return None
    # As with OpenAI, the token itself is always included.
    top = {other.text: finite(other.logprob) for other in token.alternatives}
    return {**top, token.text: finite(token.logprob)}
