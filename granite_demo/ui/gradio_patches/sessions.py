"""What Gradio keeps for each open page: the values of its components, bounded, and no copy of their configurations.

Gradio 6.31 makes that copy for links to the state of a page, which this page does not offer. A copy takes 80 ms of the
event loop and half a megabyte, for up to 10,000 pages. Gradio also keeps a record of the last 10,000 events, calculates
statistics from it after each event, and never forgets the name of a page that had an event. The values of a page have
no limit there; here each page, each visitor and all of them together have one in bytes, and a visitor who has too many
loses the oldest of their own.
"""

import asyncio
import random
import sys
import time
from collections import ChainMap, Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

from fastapi import FastAPI
from fastapi.routing import APIRoute
from gradio import Blocks, Button, Textbox, route_utils
from gradio.blocks import BlockContext
from gradio.state_holder import SessionState, StateHolder

from granite_demo.ui.executor import visitor

BASE_BYTES = 50_000
"""A page without values, about."""
MAX_SESSION_BYTES, MAX_VISITOR_BYTES, MAX_ALL_BYTES = 8_000_000, 12_000_000, 200_000_000
"""Of the values of one page, of the pages of one visitor, and of all pages."""
SAMPLES = 8
"""Elements of a long sequence that are measured."""
SESSION_SECONDS = 3600.0
"""The values of a page are kept for so long after its last event. An open page has an event every few seconds."""
SWEEP_SECONDS = 60.0
LOGOUT = "/logout"
UNCHECKED = (BlockContext, Button, Textbox)
"""Components that accept any value: the server does not need an update of one after the page has received it."""


class Session(SessionState):
    """The values of one page."""

    def __init__(self, blocks: Blocks, grown: Callable[["Session", int], None] = lambda session, more: None) -> None:
        """``grown`` is called with the number of bytes that a new value adds."""
        # Without blocks there is no configuration to copy; the rest is read from default_config.
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks=()))  # type: ignore[arg-type]
        setattr(self.blocks_config, "config_for_block", _no_configuration)  # noqa: B010
        self.config_values = NoConfigurations()
        # A page has its own copy only of the components that an event has changed. No event adds a component.
        shared: Any = blocks.default_config
        self.blocks_config.blocks = ChainMap({}, shared.blocks)  # type: ignore[assignment]
        self.blocks_config.fns = shared.fns
        self._changed = -1  # no component has this number
        self.used = time.monotonic()
        self.owner = visitor.get()
        self._grown = grown
        self._sizes: Counter[int] = Counter()

    @property
    def bytes(self) -> int:
        """The memory of the page, about."""
        return BASE_BYTES + self._sizes.total()

    def __setitem__(self, key: int, value: Any) -> None:
        block = self.blocks_config.blocks.get(key)
        if block is not None and block.stateful:
            before, self._sizes[key] = self._sizes[key], _size(value)
            self._grown(self, self._sizes[key] - before)
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


def _size(value: Any, seen: set[int] | None = None) -> int:
    """The bytes of ``value``, about: it consists of texts, numbers, sequences and dataclasses.

    The time does not grow with the number of tokens: the event loop waits for the result. Which elements of a long
    sequence are measured is random, so a visitor cannot choose values that seem small.
    """
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    parts: Sequence[Any] = ()
    if hasattr(value, "__dataclass_fields__"):
        parts = [getattr(value, name) for name in value.__dataclass_fields__]
    elif isinstance(value, tuple | list):
        parts = value
    measured = parts if len(parts) <= SAMPLES or isinstance(parts[0], str) else random.sample(parts, SAMPLES)
    inside = sum(_size(part, seen) for part in measured)
    return sys.getsizeof(value) + (inside * len(parts) // len(measured) if measured else 0)


class Sessions(StateHolder):
    """The sessions of all pages, in the order of their last use. Their bytes never exceed the limits for long."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bytes: Counter[str] = Counter()
        """Of each visitor."""
        self._sweeps = False

    def __getitem__(self, session_id: str) -> SessionState:
        session: Any = self.session_data.get(session_id)
        if session is None:
            session = self.session_data[session_id] = Session(self.blocks, self._keep_to_limits)
            self._bytes[session.owner] += session.bytes
            self._keep_to_limits(session)
        session.used = time.monotonic()
        self.session_data.move_to_end(session_id)
        self._sweep_later()
        return cast("SessionState", session)

    def _keep_to_limits(self, session: Session, more: int = 0) -> None:
        """Count ``more`` bytes of ``session``. Beyond a limit, delete the pages that one visitor used first.

        That is the visitor of ``session``, or where all visitors have too much, the one who has most.
        """
        name = next((name for name, one in reversed(self.session_data.items()) if one is session), None)
        if name is None:
            return  # deleted while its event ran
        self._bytes[session.owner] += more
        if session.bytes > MAX_SESSION_BYTES:
            self._delete(name)
        while self._bytes[session.owner] > MAX_VISITOR_BYTES:
            self._delete(self._first_of(session.owner))
        while self._bytes.total() > MAX_ALL_BYTES:
            self._delete(self._first_of(max(self._bytes, key=self._bytes.__getitem__)))

    def _first_of(self, owner: str) -> str:
        return next(name for name, one in self.session_data.items() if isinstance(one, Session) and one.owner == owner)

    def _delete(self, name: str) -> None:
        session: Any = self.session_data.pop(name)
        self._bytes[session.owner] -= session.bytes
        if self._bytes[session.owner] <= 0:
            del self._bytes[session.owner]

    def _sweep_later(self) -> None:
        with suppress(RuntimeError):  # without an event loop there is no server
            if not self._sweeps:
                asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
                self._sweeps = True

    def _sweep(self) -> None:
        self._sweeps = False
        oldest = time.monotonic() - SESSION_SECONDS
        for name in [name for name, one in self.session_data.items() if isinstance(one, Session) and one.used < oldest]:
            self._delete(name)
        if self.session_data:
            self._sweep_later()


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
    sessions: Any = Sessions()
    sessions.set_blocks(blocks)
    setattr(page, "state_holder", sessions)  # noqa: B010
    setattr(route_utils, "SessionState", Session)  # noqa: B010 - for an event without the name of a page
    queue: Any = blocks._queue
    queue.ANALYTICS_MAX_EVENTS = 0
    queue.pending_event_ids_session = PendingEvents()


def end_heartbeats(page: FastAPI) -> None:
    """End the connection that each open page holds to Gradio's application ``page``.

    Gradio 6.31 ends them when a launched page is closed; those of a mounted page delay the end of the server.
    """
    page.stop_event.set()  # type: ignore[attr-defined]


def log_out_by_post(page: FastAPI) -> None:
    """Have Gradio's application ``page`` end sessions after a POST of ``/logout`` only.

    Gradio 6.31 ends them after a GET, which a picture in an answer, or a link on another site, can cause.
    """
    for route in page.routes:
        if isinstance(route, APIRoute) and route.path == LOGOUT:
            route.methods = {"POST"}
