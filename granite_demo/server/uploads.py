"""Limits for uploaded files, which Gradio writes to disk while they arrive: their size, their number and their age."""

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

UPLOADS = "/gradio_api/upload"
MAX_UPLOAD = 32 * 2**20
"""Bytes of one request with files. Gradio limits each file, but not their sum or the other fields."""
MAX_UPLOADED = 256 * 2**20
"""Bytes of all files together. A file is read as soon as it has arrived, so the oldest can be deleted."""
KEPT_SECONDS = 600
"""The longest age of a file."""


def is_multipart(scope: Scope) -> bool:
    """Whether Gradio writes the body to files while it arrives."""
    return Headers(scope=scope).get("content-type", "").startswith("multipart/form-data")


class Sweeper:
    """Deletes old files before each upload: those that Gradio left in ``folder``, and uploads that were read."""

    def __init__(self, app: ASGIApp, folder: Path, uploaded: set[str]) -> None:
        """``uploaded``: the paths of complete uploads, the set that Gradio fills."""
        self._app = app
        self._folder = folder
        self._uploaded = uploaded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == UPLOADS:
            gone = await asyncio.to_thread(sweep, self._folder, frozenset(self._uploaded))
            self._uploaded.difference_update(gone)
        await self._app(scope, receive, send)


def sweep(folder: Path, uploaded: frozenset[str]) -> set[str]:
    """Delete files older than ``KEPT_SECONDS``, and the oldest beyond ``MAX_UPLOADED``. Returns the deleted paths."""
    # Other Gradio programs can share the folder: of complete uploads, delete only those of this server.
    files: list[tuple[float, int, str]] = []
    gone = set()
    for path in {*uploaded, *map(str, folder.glob("tmp*"))}:
        try:
            found = os.stat(path)
        except OSError:
            gone.add(path)
        else:
            files.append((found.st_mtime, found.st_size, path))
    room = MAX_UPLOADED
    for modified, size, path in sorted(files, reverse=True):
        room -= size
        if room < 0 or modified < time.time() - KEPT_SECONDS:
            with suppress(OSError):
                os.unlink(path)
                gone.add(path)
    return gone
