"""What Gradio keeps of each open page: its values, and no copy of how every component looks.

Gradio 6.31 makes that copy for links to the state of a page, which are not offered here. It takes 80 ms of the event
loop and half a megabyte for each new page, and pages are remembered up to 10,000.
"""

from collections import ChainMap
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from gradio import Blocks
from gradio.state_holder import SessionState, StateHolder

CAPACITY = 2_000
"""Pages of which the values are kept, those that were used last."""


class Session(SessionState):
    """The values of one page."""

    def __init__(self, blocks: Blocks) -> None:
        # With no blocks there is nothing whose look could be copied; all else is in the configuration.
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks=()))  # type: ignore[arg-type]
        setattr(self.blocks_config, "config_for_block", _no_look)  # noqa: B010
        # Of components only those that an event has changed are this page's own, and no event adds another one.
        shared: Any = blocks.default_config
        self.blocks_config.blocks = ChainMap({}, shared.blocks)  # type: ignore[assignment]
        self.blocks_config.fns = shared.fns


def _no_look(*values: Any) -> dict[str, Any]:
    return {}


class Sessions(StateHolder):
    """Those of all pages."""

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = Session(self.blocks)
        return super().__getitem__(session_id)


def keep_values_only(page: FastAPI, blocks: Blocks) -> None:
    """Have Gradio's application ``page`` over ``blocks`` keep no more than that."""
    sessions: Any = Sessions()  # type: ignore[no-untyped-call]
    sessions.set_blocks(blocks)
    sessions.capacity = CAPACITY
    setattr(page, "state_holder", sessions)  # noqa: B010
