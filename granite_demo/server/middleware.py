"""Rejects requests that no page sends: large bodies, unused routes of Gradio, too many at once, other host names.

A request for another host name comes from a site whose name points to this machine (DNS rebinding).
"""

from collections import Counter
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from granite_demo.access import visitor_of
from granite_demo.server.openai.errors import error_body
from granite_demo.server.uploads import MAX_UPLOAD, UPLOADS, is_multipart
from granite_demo.ui.gradio_patches.files import end_interrupted

TOO_LARGE = "The request is larger than {} MB, the maximum allowed size."
GRADIO = "/gradio_api/"
USED = {"queue/join", "queue/data", "cancel", "reset", "upload", "upload_progress", "component_server"}
USED |= {"info", "app_id", "startup-events", "theme.css"}
DIRECT_PATHS = tuple(f"{GRADIO}{name}" for name in ("run/", "upload", "component_server"))
"""Gradio answers these without its queue, on a few threads for all visitors."""
CROWD = "You have too many requests running. Try again in a moment."
USED_BELOW = ("run/", "heartbeat/", "file=")
"""The routes of Gradio that the page uses. The rest, such as the conversion of recordings, only adds attack surface."""
UNUSED_BELOW = "/monitoring"
OTHER_HOST = "The host name {!r:.80} is not allowed. To allow it, start the server with --allowed-hosts."


POLICY = (
    "img-src 'self' data: blob:; media-src 'self' data: blob:; form-action 'self'; frame-src 'none'; "
    "object-src 'none'; base-uri 'self'"
)
"""Content-Security-Policy: no text of a model can make the browser send a request to another host."""


class Guard:
    """Answers 413 to a request that is too large, before it is parsed, and adds ``POLICY`` to each answer."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        """``limit``: bytes of one request; for an upload it is ``MAX_UPLOAD``."""
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        send = _with_policy(send)
        limit = MAX_UPLOAD if scope["path"] == UPLOADS else self._limit
        too_large = TOO_LARGE.format(limit // 2**20)
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > limit:
            return await refusal(scope, too_large, 413, "request_too_large")(scope, receive, send)
        multipart = is_multipart(scope)
        if multipart:
            receive = end_interrupted(receive)
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > limit:
                raise MultiPartException(too_large) if multipart else HTTPException(413, too_large)
            return message

        return await self._app(scope, counted, send)


class RouteGuard:
    """Answers 404 to routes of Gradio that the page does not use."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_used(scope["path"]):
            return await refusal(scope, "Not found.", 404, "not_found")(scope, receive, send)
        await self._app(scope, receive, send)


class CrowdGuard:
    """Answers 429 to a visitor with ``most`` direct events running; 0: no limit."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._running: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._most or scope["type"] != "http" or not scope["path"].startswith(DIRECT_PATHS):
            return await self._app(scope, receive, send)
        visitor = visitor_of((scope.get("client") or ("",))[0])
        if self._running[visitor] >= self._most:
            headers = {"retry-after": "1"}
            return await refusal(scope, CROWD, 429, "rate_limit_exceeded", headers)(scope, receive, send)
        self._running[visitor] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running[visitor] -= 1
            if not self._running[visitor]:
                del self._running[visitor]


def _is_used(path: str) -> bool:
    name = path.removeprefix(GRADIO)
    if name == path:
        return not path.startswith(UNUSED_BELOW)
    return name.rstrip("/") in USED or name.startswith(USED_BELOW)


class HostGuard:
    """Answers 400 to a request for a host name that is not in ``hosts``; empty allows any."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._hosts:
            host = Headers(scope=scope).get("host", "")
            if _name_of(host) not in self._hosts:
                return await refusal(scope, OTHER_HOST.format(host), 400, "unknown_host")(scope, receive, send)
        await self._app(scope, receive, send)


def _name_of(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def refusal(scope: Scope, text: str, status: int, code: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The error as an answer of the API or of the page, by the path of the request."""
    body = error_body(text, status, code=code) if scope["path"].startswith("/v1/") else {"error": text}
    return JSONResponse(body, status, headers)


def _with_policy(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["content-security-policy"] = POLICY
        await send(message)

    return sending
