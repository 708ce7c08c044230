"""How the page's events run: long ones in the queue, short ones at once, none in the public API list."""

from typing import Any

MAX_STREAMS = 128
"""Answers that may stream at once; the engine decides how many of them it serves at a time."""

BUSY_SECONDS = 1.0
"""Between two looks at the model's state, while it is loaded."""

STREAMING: dict[str, Any] = {
    "concurrency_id": "generate",
    "concurrency_limit": MAX_STREAMS,
    "show_progress": "hidden",
    "api_visibility": "undocumented",
}
DIRECT: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
