"""Limits what Gradio does with files and events that a browser names."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio import route_utils, routes
from gradio.route_utils import FnIndexInferError, GradioMultiPartParser
from gradio.utils import get_upload_folder
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive

from granite_demo.errors import is_full

UNKNOWN_EVENT = "The page has no such event. Reload it."
MALFORMED = "The upload is malformed."
INTERRUPTED = "The upload was interrupted."
FILES_OF_AN_UPLOAD = 50
"""Files of one upload."""


class Parser(GradioMultiPartParser):
    """Gradio's parser of uploads, which leaves no part of a file behind after any error.

    Gradio 6.31 deletes the parts of an upload that is malformed or too large, but not those of one for which the disk
    has no room. It takes 1,000 files at once.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        options["max_files"] = FILES_OF_AN_UPLOAD
        super().__init__(*args, **options)

    async def parse(self) -> Any:
        """See ``GradioMultiPartParser``. Raises OSError if the disk is full."""
        try:
            return await super().parse()
        except OSError:
            self._delete_parts()
            raise

    def _delete_parts(self) -> None:
        for file in self._files_to_close_on_error:
            with suppress(OSError):  # closing writes what is buffered
                file.close()
            with suppress(OSError):
                Path(file.name).unlink()


def guard_files(page: gr.Blocks) -> None:
    """Accept only uploaded files: no other path on this machine, and no address to download from.

    Gradio 6.31 checks paths (``processing_utils._check_allowed``) only for a page that was launched, which a mounted
    one never is. It also downloads any path that looks like a URL.
    """
    for module in (route_utils, routes):
        setattr(module, "GradioMultiPartParser", Parser)  # noqa: B010
    setattr(routes, "upload_fn", _uploaded)  # noqa: B010
    page.has_launched = True
    for block in page.blocks.values():
        move = getattr(block, "async_move_resource_to_block_cache", None)
        if move is not None:
            setattr(block, "async_move_resource_to_block_cache", _without_addresses(move))  # noqa: B010


def refuse_unknown_events(page: FastAPI) -> None:
    """Have Gradio's application answer 404 to an event that the page does not have, such as one before a restart.

    Gradio 6.31 looks an event up by its number (``route_utils.get_fn``) and answers 500 if there is none.
    """

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": UNKNOWN_EVENT}, 404)

    for kind in (KeyError, FnIndexInferError):
        page.add_exception_handler(kind, unknown)


def uploads_of(page: gr.Blocks) -> tuple[Path, set[str]]:
    """The folder that Gradio writes uploads to, and the paths of the complete ones, which Gradio adds to."""
    return Path(get_upload_folder()), page.upload_file_set


def end_interrupted(receive: Receive) -> Receive:
    """``receive`` of a multipart body, with an error at a disconnect that makes Gradio delete its incomplete files.

    Gradio 6.31 (``GradioMultiPartParser.parse``) deletes them after a MultiPartException only.
    """
    complete = False

    async def received() -> Message:
        nonlocal complete
        message = await receive()
        if message["type"] == "http.disconnect" and not complete:
            raise MultiPartException(INTERRUPTED)
        complete = complete or not message.get("more_body", False)
        return message

    return received


async def _uploaded(*args: Any, **options: Any) -> Any:
    """Gradio's ``upload_fn``, which answers an upload that is malformed with an error of its own."""
    try:
        return await route_utils.upload_fn(*args, **options)
    except (TypeError, ValueError, AttributeError, LookupError, AssertionError) as error:
        raise MultiPartException(MALFORMED) from error
    except OSError as error:  # a file name such as "."
        if is_full(error):
            raise
        raise MultiPartException(MALFORMED) from error


def _without_addresses(move: Any) -> Any:
    async def move_file(path: Any) -> Any:
        if "://" in str(path):
            raise ValueError("The page takes uploaded files only, and downloads none.")
        return await move(path)

    return move_file
