"""What Gradio keeps of each open page: its values, and no copy of how every component looks.

Gradio 6.31 makes that copy for links to the state of a page, which are not offered here. It takes 80 ms of the event
loop and half a megabyte for each new page, and pages are remembered up to 10,000. It also keeps a record of the last
10,000 events, of which it makes statistics after each event, and for ever the name of each page that had one.
"""

from collections import ChainMap
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from gradio import Blocks, Button, Textbox
from gradio.blocks import BlockContext
from gradio.state_holder import SessionState, StateHolder

CAPACITY = 2_000
"""Pages of which the values are kept, those that were used last."""
UNREAD = (BlockContext, Button, Textbox)
"""Components that take any value: how an event has changed one for a page does not matter once the page knows it."""


class Session(SessionState):
    """The values of one page."""

    def __init__(self, blocks: Blocks) -> None:
        # With no blocks there is nothing whose look could be copied; all else is in the configuration.
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks=()))  # type: ignore[arg-type]
        setattr(self.blocks_config, "config_for_block", _no_look)  # noqa: B010
        self.config_values = Looks()
        # Of components only those that an event has changed are this page's own, and no event adds another one.
        shared: Any = blocks.default_config
        self.blocks_config.blocks = ChainMap({}, shared.blocks)  # type: ignore[assignment]
        self.blocks_config.fns = shared.fns
        self._changed = -1  # no component has this number

    def __setitem__(self, key: int, value: Any) -> None:
        if isinstance(value, UNREAD):
            # Gradio reads the last change before it makes the next.
            self.blocks_config.blocks.pop(self._changed, None)
            self._changed = key
        super().__setitem__(key, value)


class Looks(dict[int, Any]):
    """How the components of a page look: kept of none."""

    def __setitem__(self, key: int, look: Any) -> None:
        pass

    def __missing__(self, key: int) -> dict[str, Any]:
        return {}


def _no_look(*values: Any) -> dict[str, Any]:
    return {}


class Sessions(StateHolder):
    """Those of all pages."""

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = Session(self.blocks)
        return super().__getitem__(session_id)


class Awaited(dict[str, set[str]]):
    """The events that pages wait for, by page; those that wait for none go when another comes."""

    def __setitem__(self, page: str, events: set[str]) -> None:
        for name in [name for name, waiting in self.items() if not waiting]:
            del self[name]
        super().__setitem__(page, events)

    def __missing__(self, page: str) -> set[str]:
        return set()


def keep_values_only(page: FastAPI, blocks: Blocks) -> None:
    """Have Gradio's application ``page`` over ``blocks`` keep no more than that."""
    sessions: Any = Sessions()  # type: ignore[no-untyped-call]
    sessions.set_blocks(blocks)
    sessions.capacity = CAPACITY
    setattr(page, "state_holder", sessions)  # noqa: B010
    queue: Any = blocks._queue
    queue.ANALYTICS_MAX_EVENTS = 0
    queue.pending_event_ids_session = Awaited()
