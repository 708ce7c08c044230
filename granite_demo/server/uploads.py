"""Files that visitors send, which Gradio writes to disk piece by piece: how large, how many and for how long."""

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

UPLOADS = "/gradio_api/upload"
MAX_UPLOAD = 32 * 2**20
"""Bytes of one request with files. Gradio limits each file, but neither their sum nor the fields between them."""
MAX_KEPT = 256 * 2**20
"""Bytes of all files that are kept. A file is read as soon as it has come, so the oldest can go."""
KEPT_SECONDS = 600


def is_multipart(scope: Scope) -> bool:
    """Whether the body is one that Gradio writes to files while it comes."""
    return Headers(scope=scope).get("content-type", "").startswith("multipart/form-data")


class Sweeper:
    """Makes room before each upload: files in ``folder`` that Gradio has left, or that have been read long ago."""

    def __init__(self, app: ASGIApp, folder: Path, uploaded: set[str]) -> None:
        """``uploaded``: the paths of those that came whole, as Gradio keeps them."""
        self._app = app
        self._folder = folder
        self._uploaded = uploaded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == UPLOADS:
            gone = await asyncio.to_thread(sweep, self._folder, frozenset(self._uploaded))
            self._uploaded.difference_update(gone)
        await self._app(scope, receive, send)


def sweep(folder: Path, uploaded: frozenset[str]) -> set[str]:
    """Delete what is older than ``KEPT_SECONDS``, and the oldest of what is more than ``MAX_KEPT``; what is gone."""
    # The folder may be shared with other programs of Gradio's: of what came whole, only our own is touched.
    files: list[tuple[float, int, str]] = []
    gone = set()
    for path in {*uploaded, *map(str, folder.glob("tmp*"))}:
        try:
            found = os.stat(path)
        except OSError:
            gone.add(path)
        else:
            files.append((found.st_mtime, found.st_size, path))
    room = MAX_KEPT
    for modified, size, path in sorted(files, reverse=True):
        room -= size
        if room < 0 or modified < time.time() - KEPT_SECONDS:
            with suppress(OSError):
                os.unlink(path)
                gone.add(path)
    return gone
