"""What Gradio keeps for each open page: the values of its components, and no copy of their configurations.

Gradio 6.31 makes that copy for links to the state of a page, which this page does not offer. A copy takes 80 ms of the
event loop and half a megabyte, for up to 10,000 pages. Gradio also keeps a record of the last 10,000 events, calculates
statistics from it after each event, and never forgets the name of a page that had an event.
"""

from collections import ChainMap
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from gradio import Blocks, Button, Textbox
from gradio.blocks import BlockContext
from gradio.state_holder import SessionState, StateHolder

CAPACITY = 2_000
"""Pages whose values are kept: the ones used last."""
UNCHECKED = (BlockContext, Button, Textbox)
"""Components that accept any value: the server does not need an update of one after the page has received it."""


class Session(SessionState):
    """The values of one page."""

    def __init__(self, blocks: Blocks) -> None:
        # Without blocks there is no configuration to copy; the rest is read from default_config.
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks=()))  # type: ignore[arg-type]
        setattr(self.blocks_config, "config_for_block", _no_configuration)  # noqa: B010
        self.config_values = NoConfigurations()
        # A page has its own copy only of the components that an event has changed. No event adds a component.
        shared: Any = blocks.default_config
        self.blocks_config.blocks = ChainMap({}, shared.blocks)  # type: ignore[assignment]
        self.blocks_config.fns = shared.fns
        self._changed = -1  # no component has this number

    def __setitem__(self, key: int, value: Any) -> None:
        if isinstance(value, UNCHECKED):
            # Gradio reads an update only until it makes the next one.
            self.blocks_config.blocks.pop(self._changed, None)
            self._changed = key
        super().__setitem__(key, value)


class NoConfigurations(dict[int, Any]):
    """The configurations of a page's components: always empty."""

    def __setitem__(self, key: int, configuration: Any) -> None:
        pass

    def __missing__(self, key: int) -> dict[str, Any]:
        return {}


def _no_configuration(*values: Any) -> dict[str, Any]:
    return {}


class Sessions(StateHolder):
    """The sessions of all pages."""

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = Session(self.blocks)
        return super().__getitem__(session_id)


class PendingEvents(dict[str, set[str]]):
    """The events that each page waits for. A page that waits for none is removed when another one is added."""

    def __setitem__(self, page: str, events: set[str]) -> None:
        for name in [name for name, waiting in self.items() if not waiting]:
            del self[name]
        super().__setitem__(page, events)

    def __missing__(self, page: str) -> set[str]:
        return set()


def keep_values_only(page: FastAPI, blocks: Blocks) -> None:
    """Have Gradio's application ``page`` over ``blocks`` keep only values, and nothing of events that have ended."""
    blocks.state_session_capacity = CAPACITY
    sessions: Any = Sessions()  # type: ignore[no-untyped-call]
    sessions.set_blocks(blocks)
    setattr(page, "state_holder", sessions)  # noqa: B010
    queue: Any = blocks._queue
    queue.ANALYTICS_MAX_EVENTS = 0
    queue.pending_event_ids_session = PendingEvents()


def end_heartbeats(page: FastAPI) -> None:
    """End the connection that each open page holds to Gradio's application ``page``.

    Gradio 6.31 ends them when a launched page is closed; those of a mounted page delay the end of the server.
    """
    page.stop_event.set()  # type: ignore[attr-defined]
