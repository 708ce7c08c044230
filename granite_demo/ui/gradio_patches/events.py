"""How the page's events run: long ones in the queue, short ones at once, none in the public API list."""

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
"""Answers that may stream at once; the engine decides how many of them it serves at a time."""

BUSY_SECONDS = 1.0
"""Between two looks at the model's state, while it is loaded."""

QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": []}
"""No component shows that an event runs. Hidden alone would not do: at each step of an event Gradio (6.31) tells all
components that are any event's output so far how far it is, and looks each up among all of the page."""

STREAMING: dict[str, Any] = {
    **QUIET,
    "concurrency_id": "generate",
    "concurrency_limit": MAX_STREAMS,
    "api_visibility": "undocumented",
}
DIRECT: dict[str, Any] = {**QUIET, "queue": False, "api_visibility": "private"}

NOTHING_JS = "() => []"

DAMAGED = "What the browser sent is damaged. Reload the page."
INVALID = (GraniteDemoError, ValidationError, TypeError, AttributeError, KeyError, ValueError)
"""Errors that a handler raises for values that our page would not send."""


def refusal(error: Exception) -> str:
    """The text for the visitor whose values caused ``error``, one of ``INVALID``."""
    # The log gets no text of the error: it can quote what the visitor wrote.
    log.info("An event was refused: %s.", type(error).__name__)
    return error.user_text if isinstance(error, GraniteDemoError) else DAMAGED


def follow(
    changes: Sequence[Any], handler: Callable[..., Any], inputs: Any, outputs: Any, js: str | None = None
) -> Any:
    """Has ``handler`` run after each of ``changes``, once at a time, and once more for what came meanwhile.

    Gradio calls that ``always_last``, but when it runs such a listener once more it also runs all others of the same
    change (6.31): two of them set each other off for ever, and a page that stands idle asks a dozen times a second.
    So the change has a step in the browser alone, and what comes after a step is run once more by itself.
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
