"""One request from the page to the backend, as a series of snapshots. Shared by the Chat and Completion tabs."""

import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from granite_demo.backends import Backend
from granite_demo.errors import GraniteDemoError
from granite_demo.types import GenerationRequest
from granite_demo.ui.render import Answer
from granite_demo.ui.streaming import paced

log = logging.getLogger(__name__)

Snapshot = tuple[str, str, str]
"""(text so far, note under it, kind of the note: note or error)"""


async def snapshots(backend: Backend, build: Callable[[], GenerationRequest]) -> AsyncGenerator[Snapshot]:
    """Yield the answer as it grows. Errors end it with a note, never with an exception: what was written stays.

    ``build`` makes the request, so that a value out of range is reported in the same way.
    """
    answer = Answer()
    start = time.perf_counter()
    try:
        request = build()
        async with aclosing(paced(backend.stream(request))) as batches:
            async for batch in batches:
                elapsed = time.perf_counter() - start
                answer.add(batch, elapsed)
                yield answer.text, _progress(backend, answer, elapsed), "note"
    except GraniteDemoError as error:
        yield answer.text, error.user_text, "error"
    except Exception:
        # An unforeseen error may hold secrets: the visitor gets a number that the log explains.
        number = secrets.token_hex(4)
        log.exception("Request failed (%s).", number)
        yield answer.text, f"Something went wrong on the server. Try again; the log knows this as {number}.", "error"


def _progress(backend: Backend, answer: Answer, elapsed: float) -> str:
    status = backend.status()
    if answer.ttft is None and status.stage != "ready":
        percent = "" if status.fraction is None else f" {status.fraction:.0%}"
        return f"Getting the model ready: {status.stage}{percent} {status.detail}".rstrip()
    return answer.note(elapsed)
