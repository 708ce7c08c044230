"""Reads PDF and Word files of visitors in a child process, which is ended when it takes too long.

The libraries for these formats can hang, or take all memory, on a file made for that, and a thread cannot be ended.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from granite_demo.chat.documents import read_document, title_of
from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import Document

CHILD_SUFFIXES = (".pdf", ".docx")
CHILD_SECONDS, CHILD_TURN_SECONDS = 20.0, 5.0
"""The longest time of a child, and the longest wait for those before it."""
CHILDREN = 3
"""At a time, each for another visitor."""
CHILD_BYTES = 1_000_000_000
"""The memory of a child. The libraries need up to 200 MB for the largest file."""
_START = "import sys; sys.path.insert(0, sys.argv[1]); from granite_demo.chat.document_process import main; main()"

_running: Counter[str] = Counter()
"""The children of each visitor."""


async def read_in_child(path: Path, name: str, visitor: str) -> Document:
    """Read the file at ``path``, named ``name``, in a child process. Raises InvalidRequestError."""
    title = title_of(name)
    deadline = time.monotonic() + CHILD_TURN_SECONDS
    while _running[visitor] or _running.total() >= CHILDREN:
        if time.monotonic() > deadline:
            raise InvalidRequestError(f"{title} was not read: the server is busy with other files. Try again later.")
        await asyncio.sleep(0.02)
    _running[visitor] += 1
    try:
        reply = await _reply({"path": str(path), "name": name})
    except TimeoutError:
        raise InvalidRequestError(f"{title} takes too long to read. Split it, or paste the relevant part.") from None
    finally:
        _running.subtract([visitor])
        if not _running[visitor]:
            del _running[visitor]
    if "error" in reply:
        raise InvalidRequestError(reply["error"])
    if "text" not in reply:
        raise InvalidRequestError(f"{title} cannot be read here. Paste its text.")
    return Document(reply["title"], reply["text"])


async def _reply(order: dict[str, str]) -> dict[str, Any]:
    """What the child writes; empty where it ends without an answer. Raises TimeoutError."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-P", "-c", _START, str(Path(__file__).parents[2]))
    child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(CHILD_SECONDS):
            written, _ = await child.communicate(json.dumps(order).encode())
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    try:
        found = json.loads(written)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def main() -> None:
    """Read one order from the standard input, and write the document or the error to the standard output."""
    order = json.loads(sys.stdin.buffer.read())
    _limit_memory()
    try:
        document = read_document(Path(order["path"]), order["name"])
        reply = {"title": document.title, "text": document.text}
    except InvalidRequestError as error:
        reply = {"error": error.user_text}
    sys.stdout.buffer.write(json.dumps(reply).encode())


def _limit_memory() -> None:
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES, CHILD_BYTES))
