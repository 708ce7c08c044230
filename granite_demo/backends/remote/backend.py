"""A backend over other servers that speak OpenAI's API. No model is loaded here, and torch is not imported."""

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


PAUSE_SECONDS = 0.3
"""Before a server is asked a second time."""
MAX_TRIES = 4
"""Of one request, all before its first token."""
_END = object()
CLOSED = "The server is stopping, so the answer was cut off. Try again when it runs."
NOT_HERE = "{} needs the model in this process. Start granite-demo without --backend for it."


class RemoteBackend:
    """Answers with the models of other servers; see ``Backend`` and ``ModelControl`` for the methods."""

    def __init__(self, endpoints: Endpoints, model: str = "") -> None:
        """``model`` is the name to ask for; empty takes the first one that the servers list."""
        self.endpoints = endpoints
        """The servers, and what is known of them."""
        self._model = model
        self._closed = False
        self._running: dict[AsyncOpenAI, asyncio.AbstractEventLoop] = {}

    def for_visitor(self, visitor: str) -> Self:
        return self

    def status(self) -> ModelStatus:
        return state_of(self.endpoints.all, self._model)

    def start(self) -> None:
        self.endpoints.start()

    def wait_until_ready(self, seconds: float = 6.0) -> None:
        """Wait for a first look at the servers. Raises RemoteDownError where none of them is up."""
        self.start()
        self.endpoints.wait(seconds)
        status = self.status()
        if status.stage != "ready":
            raise RemoteDownError(status.detail or "The server did not answer in time. Check the address.")

    def choices(self) -> tuple[ModelChoice, ...]:
        names = dict.fromkeys(served.name for one in self.endpoints.all if one.seen for served in one.seen.models)
        return (ModelChoice(AUTO, "The server's first model"), *(ModelChoice(name, name) for name in names))

    def select(self, options: LoadOptions) -> None:
        check_options(options)
        self._model = "" if options.model == AUTO else options.model

    def cancel_load(self) -> None:
        pass

    def unload(self) -> None:
        raise InvalidRequestError("The model belongs to another server, which cannot be told to unload it.")

    def close(self) -> None:
        self._closed = True
        self.endpoints.close()
        for client, loop in list(self._running.items()):
            # A read that waits on the closed connection ends at once. The loop is the request's own.
            if not loop.is_closed():
                asyncio.run_coroutine_threadsafe(client.close(), loop)

    @asynccontextmanager
    async def _connected(self, one: Endpoint) -> AsyncIterator["AsyncOpenAI"]:
        if self._closed:
            raise EngineClosedError(CLOSED)
        async with one.connect() as client:
            self._running[client] = asyncio.get_running_loop()
            try:
                yield client
            finally:
                del self._running[client]

    async def inspect(self, request: GenerationRequest, parts: bool = False) -> PromptView | None:
        if parts or self.status().stage != "ready":
            return None
        model = self._wanted(request.model)
        one = self.endpoints.best(model)
        async with self._connected(one) as client:
            return await count_tokens(client, one, request, model)

    async def token_ids(self, request: GenerationRequest) -> tuple[int, ...]:
        """The prompt's token ids; none where no server tells them."""
        model = self._wanted(request.model)
        one = self.endpoints.best(model)
        async with self._connected(one) as client:
            return await token_ids(client, one, request, model)

    async def compare(self, request: CompareRequest) -> AsyncGenerator[Comparing | Comparison]:
        raise InvalidRequestError(NOT_HERE.format("Comparing precisions"))
        yield

    async def score(self, request: ScoreRequest) -> AsyncGenerator[Queued | ScoredToken | ScoreSummary]:
        model = self._wanted(request.model)
        for event in await self._scored(request, model):
            yield event

    async def _scored(self, request: ScoreRequest, model: str) -> list[ScoredToken | ScoreSummary]:
        *others, last = self.endpoints.order(model)
        for one in (*others, last):
            try:
                async with self._connected(one) as client:
                    return await score_text(client, one, request, model)
            except RemoteDownError as error:
                one.failed(error.user_text)
                if one is last:
                    raise
        raise AssertionError("there is at least one server")

    def _wanted(self, options: LoadOptions | None) -> str:
        if options is not None:
            check_options(options)
        wanted = self._model if options is None else options.model
        model = self.status().model if wanted in ("", AUTO) else wanted
        return "" if model == AUTO else model

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        arrived = time.perf_counter()
        for part, last in _shortenings(request):
            try:
                async with aclosing(self._tried(part, arrived)) as events:
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

    async def _tried(self, request: GenerationRequest, arrived: float) -> AsyncGenerator[StreamEvent]:
        """The answer of the first server that gives one. After the first event no other is asked."""
        model = self._wanted(request.model)
        order = self.endpoints.order(model)
        tries = [*order, order[0]][:MAX_TRIES]
        for number, one in enumerate(tries):
            begun = False
            try:
                async with aclosing(self._answer(one, request, model, arrived)) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except GraniteDemoError as error:
                if isinstance(error, RemoteDownError):
                    one.failed(error.user_text)
                if begun and not isinstance(error, EngineClosedError):
                    raise errors.cut_off(error) from error
                # A server that is busy or refuses is not asked again, but one that lost the connection is.
                left = [
                    other for other in tries[number + 1 :] if other is not one or isinstance(error, RemoteDownError)
                ]
                if not (isinstance(error, RemoteError) and error.elsewhere and left):
                    raise
                if one in left:
                    await asyncio.sleep(PAUSE_SECONDS)

    async def _answer(
        self, one: Endpoint, request: GenerationRequest, model: str, arrived: float
    ) -> AsyncGenerator[StreamEvent]:
        family = find_family(model)
        sampling = request.sampling
        drawn = secrets.randbelow(2**31) if sampling.temperature > 0 and sampling.seed is None else None
        body = to_body(request, model, family, one.kind, drawn).without(one.refused)
        level = request.controls.thinking or next(iter(family.switches.thinking), "off")
        opened = family.opens_reasoning and level != "off" and not request.raw and not one.parses_reasoning
        reader = Reader(family.dialect(bool(request.tools), request.raw), request, arrived, opened)
        traced = Provenance(model, choices={"Engine": one.kind or "another server"})
        seed = None
        ended: FinishReason | None = None
        failure: GraniteDemoError | None = None
        try:
            async with self._connected(one) as client:
                try:
                    stream, body = await request.stop.guard(_opened(client, one, body))
                    seed = body.fields.get("seed") if sampling.temperature > 0 else None
                    async with stream:
                        chunks = aiter(stream)
                        while (chunk := await request.stop.guard(anext(chunks, _END))) is not _END:
                            for event in reader.feed(_as_dict(chunk)):
                                yield event
                            one.parses_reasoning = one.parses_reasoning or reader.parsed_there
                            if reader.stopped:
                                break
                except StoppedError:
                    raise
                except Exception as error:  # the client lets through what it trips over in other people's JSON
                    if self._closed:
                        raise EngineClosedError(CLOSED) from error
                    raise errors.explain(error, one.shown, model, one.key) from error
            if reader.ended in (None, "abort", "error") and not reader.stopped:
                raise RemoteDownError(f"The server at {one.shown} ended the answer before it was whole. Try again.")
        except StoppedError:
            ended = "stopped"
        except GraniteDemoError as error:
            if reader.first is None:
                raise
            ended, failure = "stopped", error
        for event in reader.end(seed, traced, ended):
            yield event
        if failure:
            raise failure


async def _opened(client: "AsyncOpenAI", one: Endpoint, body: Body) -> tuple[Any, Body]:
    """The stream of ``body``, without the optional fields that the server rejects: those it names, else all."""
    gone: frozenset[str] = frozenset()
    while True:
        try:
            stream = await _create(client, body)
        except Exception as error:
            if "logprobs" in body.fields and errors.unsupported(error, "logprobs"):
                one.unknown |= {"logprobs"}
            if not (body.optional and errors.rejected(error)):
                raise
            named = frozenset(name for name in body.optional if errors.names(error, name))
            body, gone = body.without(named or body.optional), gone | named
        else:
            # Remembered only now, and only what it named: what else is wrong with a request is no fault of a field.
            one.refused |= gone
            return stream, body


async def _create(client: "AsyncOpenAI", body: Body) -> Any:
    from openai import AsyncStream

    return await client.post(body.path, body=body.fields, cast_to=object, stream=True, stream_cls=AsyncStream[object])


def _as_dict(chunk: Any) -> dict[str, Any]:
    return chunk if isinstance(chunk, dict) else {}


def _shortenings(request: GenerationRequest) -> Iterator[tuple[GenerationRequest, bool]]:
    """The request, then with ever fewer turns where that is allowed, and whether it is the last one."""
    parts = shortened(request) if request.overflow == "drop" and not request.raw else []
    # 1, 3, 7 … exchanges less: a server tells only whether it fits, and each answer takes its time.
    chosen = [part for number, part in enumerate(parts, 1) if number & (number + 1) == 0]
    if parts and chosen[-1] is not parts[-1]:
        chosen.append(parts[-1])
    every = [request, *chosen]
    for part in every:
        yield part, part is every[-1]
