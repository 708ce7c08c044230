"""The application under ``/v1``: its routes and their answers."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from sse_starlette import JSONServerSentEvent, ServerSentEvent
from starlette.exceptions import HTTPException

from granite_demo import __version__
from granite_demo.access import visitor_of
from granite_demo.backend import Backend
from granite_demo.server.json_body import parse_json
from granite_demo.server.openai import chat, completions
from granite_demo.server.openai.choices import Json, Wire
from granite_demo.server.openai.errors import error_of, error_response
from granite_demo.server.openai.params import check_model, served_name
from granite_demo.server.openai.protocol import ChatRequest, CompletionRequest
from granite_demo.server.openai.responses import ERRORS, ChatCompletion, Completion, Model, ModelList
from granite_demo.server.openai.streaming import Answers, ClientGoneError, EventStream, Pace, while_connected
from granite_demo.types.requests import GenerationRequest

PING_SECONDS = 10.0
PATIENCE = 0.5
"""Seconds that a stream waits for its first event: an error in that time still sets the HTTP status."""
GONE = 499
"""The code of nginx for a client that has disconnected; it appears in no answer."""
STREAMED = {"text/event-stream": {"schema": {"type": "string"}}}


class JsonRequest(Request):
    """A request with lone surrogates in its JSON replaced by U+FFFD, as on the page."""

    async def json(self) -> Any:
        """The value of the body. Raises JSONDecodeError."""
        if not hasattr(self, "_json"):
            self._json = parse_json(await self.body())
        return self._json


class ApiRoute(APIRoute):
    """Answers every error with OpenAI's error object."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See ``APIRoute``."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            request = JsonRequest(request.scope, request.receive)
            try:
                await request.body()  # here, so that the 413 of the guard does not become an error of the parser
                return await handler(request)
            except ClientGoneError:
                return Response(status_code=GONE)
            except Exception as error:
                return error_response(error)

        return handle


def create_api(backend: Backend, ping: float = PING_SECONDS) -> FastAPI:
    """The API over ``backend``. ``ping``: seconds between the comments that keep a silent stream open."""
    api = FastAPI(title="granite-demo API", version=__version__, docs_url=None, redoc_url=None)
    api.router.route_class = ApiRoute
    for kind in (HTTPException, RequestValidationError):
        api.add_exception_handler(kind, _answer_error)
    pace = Pace()
    key = [Security(HTTPBearer(auto_error=False))]

    def model() -> Json:
        return {"id": served_name(backend.status()), "object": "model", "created": 0, "owned_by": "granite-demo"}

    def own(request: Request) -> Backend:
        return backend.for_visitor(visitor_of(request.client.host if request.client else None))

    @api.get("/models", dependencies=key, response_model=ModelList, responses=ERRORS)
    async def list_models() -> JSONResponse:
        """The model that answers."""
        return JSONResponse({"object": "list", "data": [model()]})

    @api.get("/models/{name:path}", dependencies=key, response_model=Model, responses=ERRORS)
    async def retrieve_model(name: str) -> JSONResponse:
        """One model."""
        check_model(name, backend.status())
        return JSONResponse(model())

    @api.post(
        "/chat/completions",
        dependencies=key,
        response_model=ChatCompletion,
        responses={200: {"content": STREAMED}, **ERRORS},
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        status, visitor = backend.status(), own(request)
        visitor.check_visitor()
        requests = await asyncio.to_thread(chat.requests_of, body, status)
        wire = chat.wire_of(body, status)
        return await respond(request, body, Answers(visitor, requests, pace), wire, ping)

    @api.post(
        "/completions",
        dependencies=key,
        response_model=Completion,
        responses={200: {"content": STREAMED}, **ERRORS},
    )
    async def text_completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        status, visitor = backend.status(), own(request)
        visitor.check_visitor()
        requests: list[GenerationRequest] = await asyncio.to_thread(completions.requests_of, body, status)
        echo = await while_connected(request, completions.echo_of(body, requests[0], visitor)) if body.echo else None
        wire = completions.wire_of(body, status, echo)
        if body.max_tokens == 0:
            requests = []
        return await respond(request, body, Answers(visitor, requests, pace), wire, ping)

    return api


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(error)


async def respond(
    request: Request, body: ChatRequest | CompletionRequest, answers: Answers, wire: Wire, ping: float
) -> Response:
    """The answer, whole or as a stream. Closes ``answers`` after the end, an error, or a disconnect."""
    if not body.stream:
        try:
            return JSONResponse(await while_connected(request, _whole(answers, wire)))
        finally:
            await answers.close()
    try:
        await while_connected(request, answers.begin(PATIENCE))
    except BaseException:
        await answers.close()
        raise
    usage = bool(body.stream_options and body.stream_options.include_usage)
    return EventStream(_chunks(answers, wire, usage), answers.close, ping)


async def _whole(answers: Answers, wire: Wire) -> Json:
    parts: dict[int, list[Json]] = {}
    for number, choice in wire.start():
        parts.setdefault(number, []).append(choice)
    async with aclosing(answers.events()) as events:
        async for number, event in events:
            if part := wire.of(number, event):
                parts.setdefault(number, []).append(part)
    return wire.whole(parts)


async def _chunks(answers: Answers, wire: Wire, usage: bool) -> AsyncGenerator[ServerSentEvent]:
    try:
        for _, choice in wire.start():
            yield JSONServerSentEvent(wire.chunk([choice]), sep="\n")
        async with aclosing(answers.events()) as events:
            async for number, event in events:
                if part := wire.of(number, event):
                    yield JSONServerSentEvent(wire.chunk([part]), sep="\n")
        if usage:
            yield JSONServerSentEvent(wire.chunk([], wire.usage()), sep="\n")
    except Exception as error:
        yield JSONServerSentEvent(error_of(error)[1], sep="\n")
    yield ServerSentEvent("[DONE]", sep="\n")
