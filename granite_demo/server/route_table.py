"""Every route that the server answers: its methods, the type and size of its body, and what it counts as.

A path that is not in ``ROUTES`` gets status 404. The rest of Gradio's routes only add attack surface.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

JSON, FORM, FILES = "application/json", "application/x-www-form-urlencoded", "multipart/form-data"
API, GRADIO = "/v1", "/gradio_api"
LOGIN, UPLOAD = "/login", f"{GRADIO}/upload"
ANY_METHOD = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
READ = ("GET", "HEAD")
POST = ("POST",)

SMALL_BODY = 64 * 2**10
"""Bytes of a body that has a few short fields, or that nothing reads."""
MAX_UPLOAD = 32 * 2**20
"""Bytes of one request with files. Gradio limits each file, but not their sum or the other fields."""

Count = Literal["event", "direct", "upload", "page"]
"""An event of the page; one that Gradio runs without its queue, on a few threads for all visitors; an upload; the
description of the whole page, which takes Gradio a tenth of a second."""

ODD_PATH = re.compile(r"^[^/]|[\x00-\x1f\x7f-\x9f\\\ud800-\udfff\ufffd]|//|/\.\.?(/|$)|[^/]{256}")
"""Paths that a guard, a route, a file system or a proxy can read differently: control characters (the pattern of a
route also matches before a last line break), bytes that are not UTF-8, backslashes, double slashes, dot segments,
names too long for a file."""
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Names that a browser invents for a session, an event or an upload. The server keeps them in memory."""
HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(:[0-9]{1,5})?")
"""A Host header: a name or an address, and a port. IPv6 addresses are in brackets."""


@dataclass(frozen=True, slots=True)
class Route:
    """A row of the table."""

    path: str
    """One path, or with ``*`` at the end all that begin so."""
    methods: tuple[str, ...] = READ
    bodies: tuple[str, ...] = ()
    """Media types of the body of a POST. Empty: any."""
    limit: int | None = SMALL_BODY
    """Bytes of the body. None: ``Policy.max_body``."""
    counts: tuple[Count, ...] = field(default=())
    session: Literal["", "path", "body"] = ""
    """Where the session is named, besides the query."""

    def covers(self, path: str) -> bool:
        """Whether this is the row of ``path``."""
        return path.startswith(self.path[:-1]) if self.path.endswith("*") else path.rstrip("/") == self.path.rstrip("/")


ROUTES = (
    Route(UPLOAD, POST, (FILES,), MAX_UPLOAD, ("direct", "upload")),
    Route(f"{GRADIO}/run/*", POST, (JSON,), None, ("direct", "event"), "body"),
    Route(f"{GRADIO}/component_server", POST, (JSON,), None, ("direct", "event"), "body"),
    Route(f"{GRADIO}/queue/join", POST, (JSON,), None, ("event",), "body"),
    Route(f"{GRADIO}/cancel", POST, (JSON,), counts=("event",), session="body"),
    Route(f"{GRADIO}/reset", POST, (JSON,), counts=("event",), session="body"),
    Route(f"{GRADIO}/heartbeat/*", session="path"),
    Route(f"{GRADIO}/queue/data"),
    Route(f"{GRADIO}/upload_progress"),
    Route(f"{GRADIO}/startup-events"),
    Route(f"{GRADIO}/file=*"),
    Route(f"{GRADIO}/info", counts=("page",)),
    Route(f"{GRADIO}/app_id"),
    Route(f"{GRADIO}/theme.css"),
    # An own form of the page sends the login, whose fields Gradio's script sends as multipart.
    Route(LOGIN, POST, (FORM, FILES)),
    Route("/logout", (*READ, *POST)),
    Route(f"{API}/*", ANY_METHOD, limit=None),
    Route("/load_model", POST, (JSON,)),
    *(Route(path, counts=("page",)) for path in ("/", "/config")),
    *(Route(path) for path in ("/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")),
    *(Route(path) for path in ("/health", "/ready", "/metrics", "/openapi.json")),
    *(Route(path) for path in ("/assets/*", "/static/*", "/svelte/*", "/words/*", "/look/*", "/pwa_icon*")),
)


def route_of(path: str) -> Route | None:
    """The row of ``path``, or None."""
    if ODD_PATH.search(path):
        return None
    return next((route for route in ROUTES if route.covers(path)), None)
