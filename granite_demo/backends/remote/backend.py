"""The backend for other servers with an OpenAI-compatible API. It loads no model and does not import torch."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from granite_demo.backends.remote import errors
from granite_demo.backends.remote.endpoints import Endpoint, Endpoints
from granite_demo.backends.remote.families import find_family
from granite_demo.backends.remote.request import Body, to_body
from granite_demo.backends.remote.response import Reader
from granite_demo.backends.remote.scoring import score_text
from granite_demo.backends.remote.status import AUTO, check_options, state_of
from granite_demo.backends.remote.tokenize import count_tokens, token_ids
from granite_demo.errors import (
    ContextOverflowError,
    EngineClosedError,
    GraniteDemoError,
    InvalidRequestError,
    RemoteDownError,
    RemoteError,
)
from granite_demo.prompts.truncation import shortened
from granite_demo.types.comparison import Comparing, Comparison
from granite_demo.types.events import Dropped, FinishReason, Provenance, Queued, ScoreSummary, StreamEvent
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.model_status import ModelChoice, ModelStatus
from granite_demo.types.prompt_view import PromptView
from granite_demo.types.requests import CompareRequest, GenerationRequest, ScoreRequest
from granite_demo.types.stop import StoppedError

if TYPE_CHECKING:
    from openai import AsyncOpenAI


RETRY_SECONDS = 0.3
"""Delay before a second request to the same server."""
MAX_TRIES = 4
"""Tries of one request. There is no new try after the first token."""
_END = object()
SERVER_STOPS = "The server is stopping, so the answer was cut off. Try again after it has started."
NEEDS_LOCAL_MODEL = "{} needs a model in this process. To use it, start granite-demo without --backend."


class RemoteBackend:
    """Answers with the models of other servers. ``Backend`` and ``ModelControl`` describe the methods."""

    def __init__(self, endpoints: Endpoints, model: str = "") -> None:
        """``model`` is the name to request. Empty: the first model that the servers list."""
        self.endpoints = endpoints
        """The servers and their states."""
        self._model = model
        self._closed = False
        self._running: dict[AsyncOpenAI, asyncio.AbstractEventLoop] = {}

    def for_visitor(self, visitor: str) -> Self:
        return self

    def check_visitor(self) -> None:
        """See ``Backend.check_visitor``."""

    def status(self) -> ModelStatus:
        return state_of(self.endpoints.all, self._model)

    def start(self) -> None:
        self.endpoints.start()

    def wait_until_ready(self, seconds: float = 6.0) -> None:
        """Wait until the servers are probed, at most ``seconds``. Raises RemoteDownError if none of them is up."""
        self.start()
        self.endpoints.wait(seconds)
        status = self.status()
        if status.stage != "ready":
            raise RemoteDownError(status.detail or "The server did not answer in time. Check the address.")

    def choices(self) -> tuple[ModelChoice, ...]:
        names = dict.fromkeys(served.name for endpoint in self.endpoints.all for served in endpoint.models)
        return (ModelChoice(AUTO, "The server's first model"), *(ModelChoice(name, name) for name in names))

    def select(self, options: LoadOptions) -> None:
        check_options(options)
        self._model = "" if options.model == AUTO else options.model

    def cancel_load(self) -> None:
        pass

    def unload(self) -> None:
        raise InvalidRequestError("The model runs on another server. It cannot be unloaded from here.")

    def close(self) -> None:
        self._closed = True
        self.endpoints.close()
        for client, loop in list(self._running.items()):
            # A read that waits on the connection then ends. The client belongs to the event loop of its request.
            if not loop.is_closed():
                asyncio.run_coroutine_threadsafe(client.close(), loop)

    @asynccontextmanager
    async def _connected(self, endpoint: Endpoint) -> AsyncIterator["AsyncOpenAI"]:
        if self._closed:
            raise EngineClosedError(SERVER_STOPS)
        async with endpoint.connect() as client:
            self._running[client] = asyncio.get_running_loop()
            try:
                yield client
            finally:
                del self._running[client]

    async def inspect(self, request: GenerationRequest, parts: bool = False) -> PromptView | None:
        if parts or self.status().stage != "ready":
            return None
        model = self._model_for(request.model)
        endpoint = self.endpoints.best(model)
        async with self._connected(endpoint) as client:
            return await count_tokens(client, endpoint, request, model)

    async def token_ids(self, request: GenerationRequest) -> tuple[int, ...]:
        """Return the token ids of the prompt, or none if the server cannot tokenize. Raises GraniteDemoError."""
        model = self._model_for(request.model)
        endpoint = self.endpoints.best(model)
        async with self._connected(endpoint) as client:
            return await token_ids(client, endpoint, request, model)

    async def compare(self, request: CompareRequest) -> AsyncGenerator[Comparing | Comparison]:
        raise InvalidRequestError(NEEDS_LOCAL_MODEL.format("Comparing precisions"))
        yield

    async def score(self, request: ScoreRequest) -> AsyncGenerator[Queued | ScoredToken | ScoreSummary]:
        model = self._model_for(request.model)
        for event in await self._scored(request, model):
            yield event

    async def _scored(self, request: ScoreRequest, model: str) -> list[ScoredToken | ScoreSummary]:
        *others, last = self.endpoints.order(model)
        for endpoint in (*others, last):
            try:
                async with self._connected(endpoint) as client:
                    return await score_text(client, endpoint, request, model)
            except RemoteDownError as error:
                endpoint.failed(error.user_text)
                if endpoint is last:
                    raise
        raise AssertionError("there is at least one server")

    def _model_for(self, options: LoadOptions | None) -> str:
        if options is not None:
            check_options(options)
        wanted = self._model if options is None else options.model
        model = self.status().model if wanted in ("", AUTO) else wanted
        return "" if model == AUTO else model

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        arrived = time.perf_counter()
        for part, last in _shorter_requests(request):
            try:
                async with aclosing(self._stream_with_failover(part, arrived)) as events:
                    if dropped := len(request.messages) - len(part.messages):
                        first = await anext(events)
                        yield Dropped(dropped)
                        yield first
                    async for event in events:
                        yield event
                return
            except (ContextOverflowError, errors.TooLongError):
                if last:
                    raise

    async def _stream_with_failover(self, request: GenerationRequest, arrived: float) -> AsyncGenerator[StreamEvent]:
        """Yield the answer of the first server that gives one. After the first event, no other server is tried."""
        model = self._model_for(request.model)
        order = self.endpoints.order(model)
        tries = [*order, order[0]][:MAX_TRIES]
        for number, endpoint in enumerate(tries):
            has_begun = False
            try:
                async with aclosing(self._answer(endpoint, request, model, arrived)) as events:
                    async for event in events:
                        has_begun = True
                        yield event
                return
            except GraniteDemoError as error:
                if isinstance(error, RemoteDownError):
                    endpoint.failed(error.user_text)
                if has_begun and not isinstance(error, EngineClosedError):
                    raise errors.cut_off(error) from error
                # After a lost connection, the same server is tried again. After a refusal, only the others are.
                lost = isinstance(error, RemoteDownError)
                left = [other for other in tries[number + 1 :] if other is not endpoint or lost]
                if not (isinstance(error, RemoteError) and error.elsewhere and left):
                    raise
                if endpoint in left:
                    await asyncio.sleep(RETRY_SECONDS)

    async def _answer(
        self, endpoint: Endpoint, request: GenerationRequest, model: str, arrived: float
    ) -> AsyncGenerator[StreamEvent]:
        family = find_family(model)
        sampling = request.sampling
        seed_to_send = secrets.randbelow(2**31) if sampling.temperature > 0 and sampling.seed is None else None
        body = to_body(request, model, family, endpoint.kind, seed_to_send).without(endpoint.refused)
        level = request.controls.thinking or next(iter(family.switches.thinking), "off")
        thinks = family.opens_reasoning and level != "off" and not request.raw
        starts_in_reasoning = thinks and not endpoint.parses_reasoning
        reader = Reader(family.dialect(bool(request.tools), request.raw), request, arrived, starts_in_reasoning)
        provenance = Provenance(model, choices={"Engine": endpoint.kind or "another server"})
        seed = None
        ended: FinishReason | None = None
        failure: GraniteDemoError | None = None
        try:
            async with self._connected(endpoint) as client:
                try:
                    stream, body = await request.stop.guard(_open_stream(client, endpoint, body))
                    seed = body.fields.get("seed") if sampling.temperature > 0 else None
                    async with stream:
                        chunks = aiter(stream)
                        while (chunk := await request.stop.guard(anext(chunks, _END))) is not _END:
                            for event in reader.feed(_as_dict(chunk)):
                                yield event
                            endpoint.parses_reasoning = endpoint.parses_reasoning or reader.server_parses_reasoning
                            if reader.stopped:
                                break
                except StoppedError:
                    raise
                except Exception as error:  # the client raises many classes for malformed JSON
                    if self._closed:
                        raise EngineClosedError(SERVER_STOPS) from error
                    raise errors.explain(error, endpoint.address, model, endpoint.key) from error
            if reader.ended in (None, "abort", "error") and not reader.stopped:
                raise RemoteDownError(
                    f"The server at {endpoint.address} ended the answer before it was complete. Try again."
                )
        except StoppedError:
            ended = "stopped"
        except GraniteDemoError as error:
            if reader.first is None:
                raise
            ended, failure = "stopped", error
        for event in reader.end(seed, provenance, ended):
            yield event
        if failure:
            raise failure


async def _open_stream(client: "AsyncOpenAI", endpoint: Endpoint, body: Body) -> tuple[Any, Body]:
    """Open the stream of ``body``. Return it and the body that the server accepted.

    If the server rejects the body, the optional fields that its error names are removed, or all if it names none.
    """
    removed: frozenset[str] = frozenset()
    while True:
        try:
            stream = await _create(client, body)
        except Exception as error:
            if "logprobs" in body.fields and errors.unsupported(error, "logprobs"):
                endpoint.unsupported |= {"logprobs"}
            if not (body.optional and errors.rejected(error)):
                raise
            named = frozenset(name for name in body.optional if errors.names(error, name))
            body, removed = body.without(named or body.optional), removed | named
        else:
            # Recorded only after a success, and only the named fields: other errors have other causes.
            endpoint.refused |= removed
            return stream, body


async def _create(client: "AsyncOpenAI", body: Body) -> Any:
    from openai import AsyncStream

    return await client.post(body.path, body=body.fields, cast_to=object, stream=True, stream_cls=AsyncStream[object])


def _as_dict(chunk: Any) -> dict[str, Any]:
    return chunk if isinstance(chunk, dict) else {}


def _shorter_requests(request: GenerationRequest) -> Iterator[tuple[GenerationRequest, bool]]:
    """Yield the request, then shorter ones if old turns can be dropped. True marks the last."""
    parts = shortened(request) if request.overflow == "drop" and not request.raw else []
    # 1, 3, 7 … exchanges fewer: a server reports only whether the prompt fits, so few tries are better.
    chosen = [part for number, part in enumerate(parts, 1) if number & (number + 1) == 0]
    if parts and chosen[-1] is not parts[-1]:
        chosen.append(parts[-1])
    every = [request, *chosen]
    for part in every:
        yield part, part is every[-1]
