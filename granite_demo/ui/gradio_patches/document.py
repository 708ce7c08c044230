"""Puts the page's style sheet and first script before Gradio's own, and compresses the document.

Gradio 6.31 rewrites what it is given as ``css``, and adds ``head`` after the first paint: the page would flash in the
wrong colours and move. It also sends the document, half a megabyte, as it is.
"""

import asyncio
import gzip
import hashlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOK_FOLDER = "look"
FOR_EVER = {"cache-control": "public, max-age=31536000, immutable"}
"""For files whose names change with their content."""
LINKS = {"css": '<link rel="stylesheet" href="./{}">', "js": '<script src="./{}"></script>'}
MIN_COMPRESSED = 1000
"""Shorter documents are sent as they are."""


class LookFiles:
    """Serves ``files`` (content type and text, by name) and links them in each HTML document, in their order."""

    def __init__(self, app: ASGIApp, files: dict[str, tuple[str, str]]) -> None:
        self._app = app
        self._served: dict[str, tuple[str, bytes, bytes]] = {}
        links = []
        for name, (kind, text) in files.items():
            body = text.encode()
            stem, ending = name.rsplit(".", 1)
            path = f"{LOOK_FOLDER}/{stem}-{hashlib.sha256(body).hexdigest()[:12]}.{ending}"
            self._served[f"/{path}"] = kind, body, gzip.compress(body, mtime=0)
            # Relative, as Gradio's own links: behind a proxy the page can have a prefix.
            link = (
                f'<link rel="stylesheet" href="./{path}">' if ending == "css" else f'<script src="./{path}"></script>'
            )
            links.append(link)
        self._links = "".join(links).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            return await self._app(scope, receive, send)
        packs = "gzip" in Headers(scope=scope).get("accept-encoding", "")
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in self._served:
            kind, body, packed = self._served[path]
            start: Message = {"type": "http.response.start", "status": 200, "headers": []}
            headers = MutableHeaders(raw=start["headers"])
            headers.update({"content-type": kind, "vary": "accept-encoding", **FOR_EVER})
            return await _finish(send, start, packed if packs else body, packs)
        await self._app(scope, receive, self._linking(send, packs))

    def _linking(self, send: Send, packs: bool) -> Send:
        started: Message | None = None
        parts: list[bytes] = []

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start" and _is_html(message):
                started = message
            elif started is None or message["type"] != "http.response.body":
                await send(message)
            else:
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    body = b"".join(parts).replace(b"<head>", b"<head>" + self._links, 1)
                    small = not packs or len(body) < MIN_COMPRESSED
                    whole = body if small else await asyncio.to_thread(gzip.compress, body, 6)
                    await _finish(send, started, whole, not small)

        return sending


def _is_html(message: Message) -> bool:
    return Headers(raw=message["headers"]).get("content-type", "").startswith("text/html")


async def _finish(send: Send, start: Message, body: bytes, packed: bool) -> None:
    headers = MutableHeaders(raw=start["headers"])
    headers["content-length"] = str(len(body))
    if packed:
        headers["content-encoding"] = "gzip"
        headers.add_vary_header("accept-encoding")
    await send(start)
    await send({"type": "http.response.body", "body": body})
