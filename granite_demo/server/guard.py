"""The guard: the first that sees a request, and the last that sees its answer.

It rejects what no page and no client of the API sends, in the order of ``Guard._admit``; ``route_table`` has the
routes. Knows neither models nor the page.
"""

import asyncio
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from json import JSONDecodeError, dumps
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from granite_demo.access import visitor_of
from granite_demo.errors import failure_of
from granite_demo.server.credentials import Credentials
from granite_demo.server.json_body import parse_json
from granite_demo.server.openai.errors import error_response
from granite_demo.server.policy import PUBLIC_MAX_BODY, Policy
from granite_demo.server.quotas import NewSessions, Places, Rate
from granite_demo.server.route_table import API, FILES, HOST, ID, LOGIN, READ, UPLOAD, Route, route_of
from granite_demo.server.uploads import sweep
from granite_demo.ui.gradio_patches.errors import is_invalid_event
from granite_demo.ui.gradio_patches.files import end_interrupted

BODY_SECONDS, BODY_RATE = 30.0, 8 * 2**10
"""A body can take so many seconds, and one more for each so many bytes that have arrived."""
DROPPED_BODY = 64 * 2**20
"""Bytes of a rejected body that are read and dropped. A client that is cut off earlier misses the answer."""
IDS = frozenset({"session_hash", "upload_id", "event_id"})
FORWARDED = (b"x-forwarded-", b"forwarded", b"x-real-ip", b"x-original-", b"x-rewrite-")
"""Headers that a proxy sets: only those of a trusted one are read."""
NEVER = b"x-gradio-server"
"""Gradio takes the address of the page from it, and no server of ours sends it."""
SAFE = (*READ, "OPTIONS")
"""Methods that change nothing."""

TOO_LARGE = "The request is larger than {}, the maximum allowed size."
TOO_SLOW = "The body of the request arrived too slowly."
OTHER_HOST = "The host name {!r:.80} is not allowed. To allow it, start the server with --allowed-hosts."
OTHER_SITE = (
    "Requests from pages of other sites are rejected. To allow a site, start the server with --allowed-origins."
)
CROWD = "You have too many requests running. Try again in a moment."
OVER_QUOTA = "Your address sends too many {}. Try again in {} s."

CONTENT_POLICY = (
    "img-src data: blob:{icon}; media-src data: blob:; form-action 'self'; frame-src 'none'; "
    "object-src 'none'; base-uri 'self'; frame-ancestors {ancestors}"
)
"""Content-Security-Policy: no text of a model can make the browser send a request, also not to a route of this server.
The page has no picture that is a file, except the icon of the site."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request, as the checks read it."""

    path: str
    method: str
    headers: Headers
    query: tuple[tuple[str, str], ...]
    visitor: str
    route: Route | None


class Guard:
    """Admits a request to ``app``, or answers it."""

    def __init__(
        self, app: ASGIApp, policy: Policy, credentials: Credentials, folder: Path, uploaded: set[str]
    ) -> None:
        """``folder`` and ``uploaded``: see ``uploads.sweep``. Gradio adds to ``uploaded``."""
        quota = policy.quota
        self._app, self._policy, self._credentials = app, policy, credentials
        self._folder, self._uploaded = folder, uploaded
        self._requests, self._bytes = Rate(quota.requests), Rate(quota.bytes, at_once=1 / 4)
        self._rates = {"event": Rate(quota.events), "upload": Rate(quota.uploads), "page": Rate(quota.pages)}
        self._sessions = NewSessions(quota.sessions)
        self._open, self._direct = Places(quota.open), Places(quota.direct)
        self._behind_proxy = ProxyHeadersMiddleware(self._answer, policy.proxies)  # type: ignore[arg-type]
        self._ancestors = f"'self' {policy.framed_by}" if policy.framed_by else "'none'"
        self._cookie = "; SameSite=None; Secure; Partitioned" if policy.framed_by else "; SameSite=Lax"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # the server has none
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        trusted = (scope.get("client") or ("",))[0] in self._behind_proxy.trusted_hosts
        hidden = (NEVER,) if trusted else (*FORWARDED, NEVER)
        scope["headers"] = [(name, value) for name, value in scope["headers"] if not name.lower().startswith(hidden)]
        await (self._behind_proxy if trusted else self._answer)(scope, receive, send)  # type: ignore[arg-type]

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit the request to the application, and answer what is refused or fails."""
        head, started, attempt = _head_of(scope), False, False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._finish(head, scope, message)
                if attempt:
                    self._credentials.end_login(head.visitor, message["status"])
            await send(message)

        with ExitStack() as held:
            try:
                self._admit(head, held)
                if head.path.rstrip("/") == LOGIN:
                    self._credentials.begin_login(head.visitor)
                    attempt = True
                receive = await self._body(head, receive)
                if head.path == UPLOAD:
                    gone = await asyncio.to_thread(sweep, self._folder, frozenset(self._uploaded))
                    self._uploaded.difference_update(gone)
                return await self._app(scope, receive, sending)
            except HTTPException as error:
                refused = error
            except Exception as error:  # what it says can quote the visitor: uvicorn would log it
                refused = HTTPException(*failure_of(error))
        if not started:
            await _refusal(head, refused)(scope, receive, sending)

    def _admit(self, head: RequestHead, held: ExitStack) -> None:
        """Raise HTTPException unless the head of the request is in order. ``held``: what it holds to its end."""
        if head.route is None:
            raise HTTPException(404, "Not found.")
        if "content-length" in head.headers and "transfer-encoding" in head.headers:
            # A proxy and this server could read two lengths, and so two requests.
            raise HTTPException(400, "The request has two lengths.", {"connection": "close"})
        self._check_host(head)
        if head.method not in head.route.methods and not _is_preflight(head):
            allow = ", ".join(head.route.methods)
            raise HTTPException(405, f"This address takes {allow} only.", {"allow": allow})
        self._check_origin(head)
        _check_ids(head)
        self._check_size(head)
        self._check_quota(head, held)
        if self._credentials.covers(head.path) and not _is_preflight(head):
            self._credentials.check_key(head.headers, head.visitor)

    def _check_host(self, head: RequestHead) -> None:
        """A request for another host name comes from a site whose name points to this machine (DNS rebinding)."""
        for host in _hosts(head):
            if not HOST.fullmatch(host) or (self._policy.hosts and _name_of(host) not in self._policy.hosts):
                raise HTTPException(400, OTHER_HOST.format(host))

    def _check_origin(self, head: RequestHead) -> None:
        """Nothing changes at the request of another site's page. Browsers say whose page sends a request."""
        site, origin = head.headers.get("sec-fetch-site"), head.headers.get("origin")
        if head.method in SAFE or origin in self._policy.origins or site in ("same-origin", "none"):
            return
        # A browser sends Sec-Fetch-Site to https and to this machine only.
        own = site is None and (origin is None or origin.partition("://")[2] in _hosts(head))
        if not own:
            raise HTTPException(403, OTHER_SITE)

    def _check_size(self, head: RequestHead) -> None:
        kind, length = _media_type(head), head.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limit(head):
            raise self._too_large(head)
        if head.method not in SAFE and head.route and head.route.bodies and kind not in head.route.bodies:
            raise HTTPException(415, f"Send the header: Content-Type: {head.route.bodies[0]}")

    def _check_quota(self, head: RequestHead, held: ExitStack) -> None:
        assert head.route
        _check_wait("requests", self._requests.take(head.visitor))
        for count in head.route.counts:
            if count in self._rates:
                _check_wait(f"{count}s", self._rates[count].take(head.visitor))
        if head.path.rstrip("/") != UPLOAD and (size := _length(head)):
            _check_wait("bytes", self._bytes.take(head.visitor, size))
        for session in _named(head, "session_hash"):
            _check_wait("new sessions", self._sessions.take(head.visitor, session))
        for places in (self._open, *([self._direct] if "direct" in head.route.counts else [])):
            if not places.enter(head.visitor):
                raise HTTPException(429, CROWD, {"retry-after": "1"})
            held.callback(places.leave, head.visitor)

    def _limit(self, head: RequestHead) -> int:
        assert head.route
        return self._policy.max_body if head.route.limit is None else head.route.limit

    def _too_large(self, head: RequestHead) -> HTTPException:
        limit = self._limit(head)
        size = f"{limit // 2**20} MB" if limit >= 2**20 else f"{limit // 2**10} kB"
        cut = "transfer-encoding" in head.headers or _length(head) > DROPPED_BODY
        return HTTPException(413, TOO_LARGE.format(size), {"connection": "close"} if cut else None)

    async def _body(self, head: RequestHead, receive: Receive) -> Receive:
        """``receive`` within the limits of size and time. A body that names a session is read and checked."""
        files = _media_type(head) == FILES
        receive = partial(self._bounded, head, _Arrival(), end_interrupted(receive) if files else receive, files)
        if not (head.route and head.route.session == "body" and head.method == "POST"):
            return receive
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return _repeated(message, receive)
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        return _repeated({"type": "http.request", "body": self._checked(head, body)}, receive)

    async def _bounded(self, head: RequestHead, arrival: "_Arrival", receive: Receive, files: bool) -> Message:
        """The next part of the body. Raises HTTPException, or what makes Gradio delete its incomplete files."""
        refused = None
        try:
            async with asyncio.timeout(None if arrival.complete else arrival.left()):
                message = await receive()
        except TimeoutError:
            refused = HTTPException(408, TOO_SLOW, {"connection": "close"})
        else:
            arrival.add(message)
            if arrival.size > self._limit(head):
                refused = self._too_large(head)
        if refused:
            raise MultiPartException(refused.detail) if files else refused
        return message

    def _checked(self, head: RequestHead, body: bytes) -> bytes:
        """``body``, whose session is in order. Raises HTTPException."""
        try:
            value = parse_json(body)
        except JSONDecodeError:
            raise HTTPException(400, "The body is not valid JSON.") from None
        if not isinstance(value, dict):
            raise HTTPException(400, "The body must be a JSON object.")
        for name in IDS & value.keys():
            if value[name] is not None:
                _check_id(name, value[name])
        _check_wait("new sessions", self._sessions.take(head.visitor, value.get("session_hash") or ""))
        surrogates = b"\\ud" in body.lower()
        return dumps(value, ensure_ascii=False).encode() if surrogates else body

    def _finish(self, head: RequestHead, scope: Scope, message: Message) -> None:
        """Complete the head of an answer."""
        if message["status"] == HTTPStatus.INTERNAL_SERVER_ERROR and is_invalid_event(scope):
            message["status"] = HTTPStatus.UNPROCESSABLE_ENTITY.value
        headers = MutableHeaders(scope=message)
        icon = "".join(f" {host}/favicon.ico" for host in _hosts(head)[:1] if HOST.fullmatch(host))
        headers["content-security-policy"] = CONTENT_POLICY.format(icon=icon, ancestors=self._ancestors)
        headers["x-content-type-options"] = "nosniff"
        headers["referrer-policy"] = "same-origin"
        if not {"cache-control", "etag", "last-modified"} & set(headers.keys()):
            # What a page says depends on who asks and under which name. No cache may keep it for others.
            headers["cache-control"] = "no-store"
        if (origin := head.headers.get("origin")) in self._policy.origins:  # a refusal does not pass CORSMiddleware
            headers["access-control-allow-origin"] = str(origin)
            headers.add_vary_header("origin")
        message["headers"] = [
            (name, self._with_attributes(value) if name == b"set-cookie" else value) for name, value in headers.raw
        ]

    def _with_attributes(self, cookie: bytes) -> bytes:
        parts = cookie.decode("latin-1").split(";")
        kept = [part for part in parts if part.strip().lower().partition("=")[0] not in ("samesite", "partitioned")]
        if self._policy.framed_by:
            kept = [part for part in kept if part.strip().lower() != "secure"]
        return (";".join(kept) + self._cookie).encode("latin-1")


class _Arrival:
    """How much of a body has arrived, and how long the rest can take."""

    def __init__(self) -> None:
        self.size = 0
        self.complete = False
        self._began = time.monotonic()

    def add(self, message: Message) -> None:
        self.size += len(message.get("body", b""))
        self.complete = message["type"] != "http.request" or not message.get("more_body", False)

    def left(self) -> float:
        return self._began + BODY_SECONDS + self.size / BODY_RATE - time.monotonic()


def _head_of(scope: Scope) -> RequestHead:
    path, headers = scope["path"], Headers(scope=scope)
    query = tuple(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    visitor = visitor_of((scope.get("client") or ("",))[0])
    return RequestHead(path, scope["method"], headers, query, visitor, route_of(path))


def _is_preflight(head: RequestHead) -> bool:
    return head.method == "OPTIONS" and "access-control-request-method" in head.headers


def _length(head: RequestHead) -> int:
    """The bytes of the body. One without a length counts as a large one."""
    length = head.headers.get("content-length", "")
    return int(length) if length.isdigit() else PUBLIC_MAX_BODY if "transfer-encoding" in head.headers else 0


def _media_type(head: RequestHead) -> str:
    return head.headers.get("content-type", "").partition(";")[0].strip().lower()


def _hosts(head: RequestHead) -> list[str]:
    """The host names of a request: that of the browser, if a trusted proxy says it, and that of the connection."""
    said = head.headers.get("x-forwarded-host", "").partition(",")[0].strip()
    return [host for host in (said, head.headers.get("host", "")) if host]


def _name_of(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _named(head: RequestHead, name: str) -> Iterable[str]:
    """The values of ``name`` in the query and the path."""
    yield from (value for key, value in head.query if key == name)
    if name == "session_hash" and head.route and head.route.session == "path":
        yield head.path.rpartition("/")[2]


def _check_ids(head: RequestHead) -> None:
    for name in IDS:
        for value in _named(head, name):
            _check_id(name, value)


def _check_id(name: str, value: Any) -> None:
    if not isinstance(value, str) or not ID.fullmatch(value):
        raise HTTPException(400, f"{name} must have 1 to 64 letters, digits, hyphens and underscores.")


def _check_wait(what: str, seconds: float) -> None:
    if seconds:
        whole = max(1, ceil(seconds))
        # The connection ends: requests that were sent without a wait for the answers to others go unread.
        raise HTTPException(429, OVER_QUOTA.format(what, whole), {"retry-after": str(whole), "connection": "close"})


def _repeated(message: Message, receive: Receive) -> Receive:
    """``receive`` after ``message``."""
    waiting = [message]

    async def received() -> Message:
        return waiting.pop() if waiting else await receive()

    return received


def _refusal(head: RequestHead, error: HTTPException) -> Response:
    """``error`` as an answer of the API or of the page, by the path of the request."""
    if head.path.startswith((f"{API}/", "/metrics", "/load_model")):
        return error_response(error)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
