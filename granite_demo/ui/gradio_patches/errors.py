"""Errors of Gradio's events: short lines in the log instead of tracebacks, and a status that says whose error it is."""

import logging
import sys
import traceback
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from gradio import queueing, route_utils, routes, utils
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Scope

from granite_demo.errors import failure_of, is_full
from granite_demo.ui.gradio_patches.events import DAMAGED, INVALID

log = logging.getLogger(__name__)

REJECTED_VALUES = "granite_demo.rejected"
"""In the scope of a request: Gradio or a handler rejected its values."""

PRINTING = (queueing, route_utils, routes, utils)
"""The modules of Gradio that print tracebacks while a page is served."""


def log_errors() -> None:
    """Log the class and the place of an error in an event, and nothing else.

    Gradio 6.31 prints whole tracebacks to standard error, where no filter of the log masks secrets.
    """
    for module in PRINTING:
        setattr(module, "traceback", _Traceback)  # noqa: B010


def mark_rejected_values() -> None:
    """Note in the scope of a direct event that its values were wrong; see ``is_invalid_event``.

    Gradio 6.31 answers each error of such an event with status 500.
    """
    call: Any = route_utils.call_process_api
    if hasattr(call, "__wrapped__"):
        return

    @wraps(call)
    async def marked(*args: Any, **named: Any) -> Any:
        try:
            return await call(*args, **named)
        except (*INVALID, LookupError, ArithmeticError, AssertionError, RecursionError, OSError, gr.Error) as error:
            if is_full(error):
                raise
            body: Any = named["body"]
            if body.request is not None:
                body.request.scope[REJECTED_VALUES] = True
            raise

    setattr(route_utils, "call_process_api", marked)  # noqa: B010


def is_invalid_event(scope: Scope) -> bool:
    """Whether the values of the event in ``scope`` were rejected: the error is that of the visitor."""
    return REJECTED_VALUES in scope


def answer_failures(page: FastAPI) -> None:
    """Have Gradio's application ``page`` answer an unexpected error with an ID of the log."""

    async def failed(request: Request, error: Exception) -> JSONResponse:
        status, text = failure_of(error)
        return JSONResponse({"error": text}, status)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        # FastAPI would repeat the values, and cannot write all of them as JSON.
        return JSONResponse({"detail": DAMAGED}, 422)

    page.add_exception_handler(Exception, failed)
    page.add_exception_handler(RequestValidationError, invalid)


class _Traceback:
    """The two functions of the module ``traceback`` that Gradio calls."""

    @staticmethod
    def print_exc(*args: Any, **options: Any) -> None:
        """Log where the current error was raised."""
        log.error("An event of the page failed: %s.", _place(sys.exception()))

    @staticmethod
    def format_exc(*args: Any, **options: Any) -> str:
        """The class of the current error, and where it was raised."""
        return _place(sys.exception())


def _place(error: BaseException | None) -> str:
    frames = traceback.extract_tb(error.__traceback__) if error else []
    where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
