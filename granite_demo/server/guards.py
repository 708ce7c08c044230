"""What a browser may send: no file that is not its own, no address to fetch, no body without an end."""

from typing import Any

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from granite_demo.api.errors import error_body

MAX_BODY = 8 * 2**20
"""Bytes of one request. Uploads have their own limit, which Gradio keeps."""
TOO_LARGE = f"The request is larger than {MAX_BODY // 2**20} MB."


def guard_files(page: gr.Blocks) -> None:
    """Have Gradio refuse paths and addresses that a browser names; only what it uploaded itself is a file.

    Gradio 6.31 checks paths (``processing_utils._check_allowed``) only for a page that was launched, which a mounted
    one never is, and it fetches what looks like a URL.
    """
    page.has_launched = True
    for block in page.blocks.values():
        move = getattr(block, "async_move_resource_to_block_cache", None)
        if move is not None:
            setattr(block, "async_move_resource_to_block_cache", _without_addresses(move))  # noqa: B010


def _without_addresses(move: Any) -> Any:
    async def move_file(path: Any) -> Any:
        if "://" in str(path):
            raise ValueError("Nothing is fetched from elsewhere.")
        return await move(path)

    return move_file


POLICY = (
    "img-src 'self' data: blob:; media-src 'self' data: blob:; form-action 'self'; frame-src 'none'; "
    "object-src 'none'; base-uri 'self'"
)
"""Content-Security-Policy: whatever a model writes, the browser asks no other host for it."""


class Guard:
    """Answers 413 to a request that is too large, before anything parses it, and sends ``POLICY`` with each answer."""

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].endswith("/upload"):
            return await self._app(scope, receive, send)
        send = _with_policy(send)
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > self._limit:
            of_api = scope["path"].startswith("/v1/")
            body = error_body(TOO_LARGE, 413, code="request_too_large") if of_api else {"error": TOO_LARGE}
            return await JSONResponse(body, 413)(scope, receive, send)
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > self._limit:
                raise HTTPException(413, TOO_LARGE)
            return message

        return await self._app(scope, counted, send)


def _with_policy(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["content-security-policy"] = POLICY
        await send(message)

    return sending
