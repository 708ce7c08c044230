"""How the page's events run: long ones in the queue, short ones directly, none in the list of Gradio's API."""

import logging
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import gradio as gr
from pydantic import ValidationError

from granite_demo.errors import GraniteDemoError
from granite_demo.ui.html import note_html

log = logging.getLogger(__name__)

MAX_STREAMS = 128
"""Answers that can stream at the same time; the engine decides how many of them it runs."""

BUSY_SECONDS = 1.0
"""Between two reads of the model's state, while it loads."""

QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": []}
"""No component shows the progress of an event. "hidden" alone is not enough: at each step of an event, Gradio 6.31
updates the progress of each component that has been an output of any event, and searches the whole page for it."""

STREAMING: dict[str, Any] = {
    **QUIET,
    "concurrency_id": "generate",
    "concurrency_limit": MAX_STREAMS,
    "api_visibility": "undocumented",
}
DIRECT: dict[str, Any] = {**QUIET, "queue": False, "api_visibility": "private"}

NOTHING_JS = "() => []"

DAMAGED = "The browser sent invalid data. Reload the page."
INVALID = (GraniteDemoError, ValidationError, TypeError, AttributeError, KeyError, ValueError)
"""Errors that a handler raises for values that our page would not send."""


def refusal(error: Exception) -> str:
    """The text for the visitor whose values caused ``error``, one of ``INVALID``."""
    # The log gets no text of the error, which can quote the visitor.
    log.info("An event was rejected: %s.", type(error).__name__)
    return error.user_text if isinstance(error, GraniteDemoError) else DAMAGED


def follow(
    changes: Sequence[Any], handler: Callable[..., Any], inputs: Any, outputs: Any, js: str | None = None
) -> Any:
    """Run ``handler`` after each of ``changes``: one run at a time, and one more if there was a change during a run.

    This is Gradio's ``always_last``. But when Gradio 6.31 runs such a listener one more time, it also runs all other
    listeners of the same change: two of them start each other without end, and an idle page sends a dozen requests a
    second. So each change starts a step of its own in the browser, and ``handler`` is the only listener of that step.
    """
    step = gr.on(list(changes), None, js=NOTHING_JS, **DIRECT)
    return step.then(handler, inputs, outputs, js=js, trigger_mode="always_last", **DIRECT)


def forgiving(handler: Callable[..., tuple[Any, ...]], outputs: int) -> Callable[..., tuple[Any, ...]]:
    """``handler`` with one more output: the reason, where the handler raises one of ``INVALID`` and changes nothing."""

    @wraps(handler)
    def safe(*args: Any) -> tuple[Any, ...]:
        try:
            return *handler(*args), ""
        except INVALID as error:
            return *(gr.skip(),) * outputs, note_html(refusal(error), "error")

    return safe
