"""What Gradio would print of errors, as lines of this package's log: their texts repeat what a visitor sent."""

import logging
import sys
import traceback
from pathlib import Path
from typing import Any

from gradio import queueing, route_utils, routes, utils

log = logging.getLogger(__name__)


def log_errors() -> None:
    """Have Gradio tell of an error its class and its place only, and that to the log.

    Gradio 6.31 prints whole tracebacks to standard error, past the log and what that masks.
    """
    for module in (queueing, route_utils, routes, utils):
        setattr(module, "traceback", _Told)  # noqa: B010


class _Told:
    """As much of the module ``traceback`` as Gradio uses."""

    @staticmethod
    def print_exc(*args: Any, **options: Any) -> None:
        """Instead of the traceback of the error that is being handled."""
        log.error("The page could not do what was asked: %s.", _place(sys.exception()))

    @staticmethod
    def format_exc(*args: Any, **options: Any) -> str:
        """Instead of its text."""
        return _place(sys.exception())


def _place(error: BaseException | None) -> str:
    frames = traceback.extract_tb(error.__traceback__) if error else []
    where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
