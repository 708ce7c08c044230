"""Closes the file and event routes of Gradio that the page does not use."""

from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.route_utils import FnIndexInferError
from starlette.requests import Request
from starlette.responses import JSONResponse

UNKNOWN_EVENT = "The page has no such event. Reload it."


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


def refuse_unknown_events(page: FastAPI) -> None:
    """Have Gradio's application answer 404 to an event that the page does not have, as one of before a restart.

    Gradio 6.31 looks it up by its number (``route_utils.get_fn``) and fails where there is none.
    """

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": UNKNOWN_EVENT}, 404)

    for kind in (KeyError, FnIndexInferError):
        page.add_exception_handler(kind, unknown)


def _without_addresses(move: Any) -> Any:
    async def move_file(path: Any) -> Any:
        if "://" in str(path):
            raise ValueError("Nothing is fetched from elsewhere.")
        return await move(path)

    return move_file
