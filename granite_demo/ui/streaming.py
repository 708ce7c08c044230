"""An answer that streams into a panel of the page: its pace, its states, and the Start and Stop of the panel."""

import asyncio
import contextlib
import inspect
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar, cast

import gradio as gr

from granite_demo.access import visitor_of
from granite_demo.backend import Backend
from granite_demo.chat.answer import Answer
from granite_demo.errors import GraniteDemoError, log_unexpected
from granite_demo.types.model_status import ModelStatus
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.stop import Stop
from granite_demo.ui.executor import off_loop
from granite_demo.ui.gradio_patches.events import DIRECT, INVALID, STREAMING, refusal
from granite_demo.ui.html import note_html

Event = TypeVar("Event")

UPDATE_INTERVAL = 1 / 12
"""Seconds between updates: faster than anyone reads, and cheap for the server and the browser."""
SPREAD = 0.2
"""With several answers, each interval is longer or shorter by a random share of itself, up to this. Questions that came
together are then not all updated at the same moment, which the model's thread would wait for."""
MOST_UPDATES = 400
"""Updates a second, of all answers together: the model's thread would wait for more of them."""
REST = 2
"""The pause after an update, in multiples of its duration: with many answers, updates do not take all of the server."""
LONGEST_INTERVAL = 1.0
IDLE_INTERVAL = 0.4
"""Seconds without an event before an empty batch is yielded: Gradio notices a closed tab only when it sends."""


async def paced(
    events: AsyncGenerator[Event],
    interval: float = UPDATE_INTERVAL,
    idle: float = IDLE_INTERVAL,
    answers: Callable[[], int] = lambda: 1,
) -> AsyncGenerator[list[Event]]:
    """Yield the events since the last batch, at most once per ``interval``; an empty batch every ``idle`` seconds.

    The interval grows, up to ``LONGEST_INTERVAL``, where the reader takes long over a batch or ``answers``, the number
    of answers that are written now, is high.

    Closing this generator closes ``events``. Raises what ``events`` raises, after the events before it.
    """
    pending: list[Event] = []
    arrived = asyncio.Event()

    async def collect() -> None:
        try:
            async for event in events:
                pending.append(event)
                arrived.set()
        finally:
            arrived.set()

    task = asyncio.create_task(collect())
    try:
        while not task.done():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(arrived.wait(), idle)
            arrived.clear()
            batch, pending[:] = list(pending), []
            start = time.perf_counter()
            yield batch
            if not task.done():
                count = answers()
                rest = max(REST * (time.perf_counter() - start), count / MOST_UPDATES)
                pause = max(interval, min(rest, LONGEST_INTERVAL))
                if count > 1:
                    pause *= random.uniform(1 - SPREAD, 1 + SPREAD)
                await asyncio.wait([task], timeout=pause)
        if pending:
            yield list(pending)
        await task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
        await events.aclose()


Kind = Literal["note", "error"]

STILL_WRITING = "The answer is still being written. Stop it first."
SETTLE_SECONDS = 0.2
"""Time for the last update of an answer to reach the browser."""


class Snapshot(NamedTuple):
    """One state of an answer, with the note under it; ``kind`` is note or error."""

    answer: Answer
    note: str
    kind: Kind
    elapsed: float
    """Seconds since the request was made."""


class Visitors:
    """The answers that are being written in one panel, so that Stop and a closed page reach the right request.

    Gradio's own ``cancels`` closes the stream while updates are on their way, which overwrite what Stop showed last.
    """

    def __init__(self) -> None:
        self._stops: dict[str, list[Stop]] = {}

    @contextmanager
    def answering(self, visitor: str) -> Iterator[Stop]:
        """Register an answer to ``visitor``, a session hash of Gradio. The stop is set when the answer has to end."""
        stop = Stop()
        self._stops.setdefault(visitor, []).append(stop)
        try:
            yield stop
        finally:
            self._stops[visitor].remove(stop)
            if not self._stops[visitor]:
                del self._stops[visitor]

    def streaming(self, visitor: str) -> bool:
        """Whether an answer to ``visitor`` is being written."""
        return visitor in self._stops

    async def settled(self, visitor: str, seconds: float) -> None:
        """Wait up to ``seconds`` until no answer is shown to ``visitor``, and the page has its last updates."""
        if not self.streaming(visitor):
            return
        deadline = time.monotonic() + seconds
        while self.streaming(visitor) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await asyncio.sleep(SETTLE_SECONDS)

    def stop(self, visitor: str) -> bool:
        """Stop the answers to ``visitor``. False if there are none."""
        stops = self._stops.get(visitor, [])
        for stop in stops:
            stop.set()
        return bool(stops)


Build = Callable[[], GenerationRequest] | Callable[[], Awaitable[GenerationRequest]]
"""Makes a request: a function, which is called in a thread, or a coroutine function."""


async def snapshots(backend: Backend, build: Build, stop: Stop) -> AsyncGenerator[Snapshot]:
    """Yield the states of the answer, until it ends or ``stop`` is set.

    An error becomes the note of the last state, and the text stays; nothing is raised. ``build`` makes the request, so
    that the same holds for a value out of range.
    """
    answer = Answer()
    start = time.perf_counter()
    elapsed = 0.0
    answered = 1
    try:
        built = await (build() if inspect.iscoroutinefunction(build) else off_loop(build))
        request = replace(cast("GenerationRequest", built), stop=stop)
        answer.written = len(request.written)
        async with aclosing(paced(backend.stream(request), answers=lambda: answered)) as batches:
            async for batch in batches:
                elapsed, status = time.perf_counter() - start, backend.status()
                answered = status.engine.running if status.engine else 1
                answer.add(batch, elapsed)
                if not stop.is_set():
                    yield Snapshot(replace(answer), _progress(status, answer, elapsed), "note", elapsed)
        if stop.is_set():
            yield Snapshot(replace(answer), answer.stopped_note(elapsed), "note", elapsed)
    except GraniteDemoError as error:
        yield Snapshot(replace(answer), error.user_text, "error", elapsed)
    except Exception as error:
        yield Snapshot(replace(answer), log_unexpected(error), "error", elapsed)


def _progress(status: ModelStatus, answer: Answer, elapsed: float) -> str:
    if answer.ttft is None and answer.ahead is None and status.stage != "ready":
        percent = "" if status.fraction is None else f" {status.fraction:.0%}"
        return f"Getting the model ready: {status.stage}{percent} {status.detail}".rstrip()
    return answer.note(elapsed)


def address(visit: gr.Request) -> str:
    """The visitor whose limits hold for a request; see ``access.visitor_of``."""
    return visitor_of(visit.client.host if visit.client else None)


def own(backend: Backend, visit: gr.Request) -> Backend:
    """``backend`` within the limits of the visitor."""
    return backend.for_visitor(address(visit))


def session(visit: gr.Request) -> str:
    """The id of one open page."""
    return visit.session_hash or ""


Update = dict[Any, Any]
"""New values of components; a component that is not in it stays as it is."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One start of a panel by one visitor."""

    backend: Backend
    """Within the visitor's limits."""
    address: str
    stop: Stop
    """Set when the visitor stops the answer or closes the page."""
    busy: Update = field(default_factory=dict)
    """Shows Stop. Goes into the first update of a stream that is worth stopping."""
    event: gr.EventData = field(default_factory=lambda: gr.EventData(None, None))
    """What Gradio knows of the event that started it."""
    page: str = ""
    """The open page, see ``session``."""


Stream = Callable[..., AsyncGenerator[Update]]
"""Yields the updates of a panel. Its arguments are a ``Visit`` and the values of the inputs."""


@dataclass(frozen=True, slots=True)
class StreamingPanel:
    """One panel of the page in which answers stream: Start, Stop, a closed page, and the last update."""

    backend: Backend
    buttons: Sequence[Any]
    """Start and Stop, and what else waits for the end of an answer."""
    states: Callable[[bool], Sequence[Any]]
    """The values of ``buttons`` while an answer is written (True) and otherwise."""
    note: gr.HTML
    """Shows why nothing was started."""
    screen: Sequence[Any]
    """All other components that the streams update."""
    visitors: Visitors = field(default_factory=Visitors)

    def start(self, name: str, events: Sequence[Any], stream: Stream, inputs: Sequence[Any], **options: Any) -> Any:
        """Run ``stream`` after each of ``events``, once at a time for each visitor. ``options`` are Gradio's."""

        async def run(request: gr.Request, event: gr.EventData, *values: Any) -> AsyncGenerator[Update]:
            visitor = session(request)
            if self.visitors.streaming(visitor):
                yield {self.note: note_html(STILL_WRITING, "error")}
                return
            shown: Update = {}
            with self.visitors.answering(visitor) as stop:
                backend = own(self.backend, request)
                visit = Visit(backend, address(request), stop, self._buttons(True), event, visitor)
                try:
                    backend.check_visitor()
                    async with aclosing(stream(visit, *values)) as updates:
                        async for update in updates:
                            shown |= update
                            yield update or gr.skip()
                except INVALID as error:
                    shown[self.note] = note_html(refusal(error), "error")
                except Exception as error:
                    shown[self.note] = note_html(log_unexpected(error), "error")
            # All values once more: of two updates in quick succession, Gradio can lose the first.
            yield {**shown, **self._buttons(False)}

        outputs = [*self.screen, self.note, *self.buttons]
        return gr.on(list(events), run, list(inputs), outputs, api_name=name, **{**STREAMING, **options})

    def stop(self, event: Any) -> Any:
        """Have ``event`` stop the visitor's answer. Where nothing is written it resets the buttons."""

        async def stop(request: gr.Request) -> Update:
            # The end of the stream resets them; an update from here can be overwritten by one on its way.
            return gr.skip() if self.visitors.stop(session(request)) else self._buttons(False)

        return event(stop, None, list(self.buttons), **DIRECT)

    def stop_on_leave(self, page: gr.Blocks) -> None:
        """Have a closed page stop its answer."""

        def leave(request: gr.Request) -> None:
            self.visitors.stop(session(request))

        page.unload(leave)

    def _buttons(self, busy: bool) -> Update:
        return dict(zip(self.buttons, self.states(busy), strict=True))


def run_or_stop(busy: bool) -> tuple[Any, Any]:
    """``StreamingPanel.states`` for two buttons, of which one is visible."""
    return gr.Button(visible=not busy), gr.Button(visible=busy)


Latest = list[Snapshot | None]
"""The newest snapshot of each side; None before the first one."""


async def side_by_side(
    streams: Sequence[Callable[[], AsyncGenerator[Snapshot]]], stop: Stop, together: bool
) -> AsyncGenerator[Latest]:
    """Yield the latest snapshot of each of ``streams``, which run at the same time or one after the other.

    Closing this generator closes all of them.
    """
    latest: Latest = [None] * len(streams)
    changed = asyncio.Event()

    async def follow(places: Sequence[int]) -> None:
        try:
            for place in places:
                if place != places[0] and stop.is_set():
                    break
                async with aclosing(streams[place]()) as shots:
                    async for shot in shots:
                        latest[place] = shot
                        changed.set()
        finally:
            changed.set()

    everyone = range(len(streams))
    tasks = [asyncio.create_task(follow(places)) for places in ([[n] for n in everyone] if together else [everyone])]
    try:
        while not all(task.done() for task in tasks):
            await changed.wait()
            changed.clear()
            yield list(latest)
            await asyncio.wait(tasks, timeout=UPDATE_INTERVAL, return_when=asyncio.ALL_COMPLETED)
        yield list(latest)
        for task in tasks:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
