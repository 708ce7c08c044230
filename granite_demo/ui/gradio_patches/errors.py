"""Gradio's tracebacks, as short lines of this package's log: their texts repeat what a visitor sent."""

import logging
import sys
import traceback
from pathlib import Path
from typing import Any

from gradio import queueing, route_utils, routes, utils

log = logging.getLogger(__name__)

PRINTING = (queueing, route_utils, routes, utils)
"""The modules of Gradio that print tracebacks while a page is served."""


def log_errors() -> None:
    """Log the class and the place of an error in an event, and nothing else.

    Gradio 6.31 prints whole tracebacks to standard error, where no filter of the log masks secrets.
    """
    for module in PRINTING:
        setattr(module, "traceback", _Traceback)  # noqa: B010


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
