"""What happens in the Write tab: its events, wired to the pure functions that know what they mean."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import gradio as gr

from granite_demo.backend import Backend
from granite_demo.errors import GraniteDemoError, InvalidRequestError
from granite_demo.types.requests import GenerationRequest
from granite_demo.ui.completion import constraint, token_tree, token_view
from granite_demo.ui.completion.branches import run_of
from granite_demo.ui.completion.token_tree import Tree
from granite_demo.ui.completion.token_view import Tint
from granite_demo.ui.completion.write import (
    UNTOLD,
    History,
    WriteTab,
    accepted,
    counted_values,
    history_values,
    no_samples,
    pending_values,
    redone,
    seen,
    shown_values,
    undone,
)
from granite_demo.ui.completion.write_stream import Ask, asked, buttons, growing, picked, wanted
from granite_demo.ui.gradio_patches.events import DIRECT, STREAMING, follow, forgiving, told
from granite_demo.ui.html import note_html
from granite_demo.ui.settings import Preferences
from granite_demo.ui.streaming import Visitors, own, session

PAUSE_SECONDS = 0.5
"""Without typing, before the text is looked at."""
STILL_WRITING = "The continuation is still being written. Stop it first."


def wire(tab: WriteTab, preferences: Preferences, backend: Backend, demo: gr.Blocks, ready: list[Any]) -> None:
    """Connect the events. ``ready`` are those after which another model may answer."""
    visitors = Visitors()
    wire_continuing(tab, preferences, backend, visitors)
    wire_pending(tab, visitors)
    wire_text(tab, backend, ready)
    constraint.wire(tab.constraint)
    follow(ready, lambda: shown_values(backend.status()), None, tab.shown)

    def leave(visit: gr.Request) -> None:
        visitors.stop(session(visit))

    demo.unload(leave)


def _idle(visitors: Visitors, visit: gr.Request) -> None:
    if visitors.streaming(session(visit)):
        raise InvalidRequestError(STILL_WRITING)


def wire_continuing(tab: WriteTab, preferences: Preferences, backend: Backend, visitors: Visitors) -> None:
    """Continue, Stop, and the alternatives of a token."""
    columns = [part for column in tab.columns for part in (column.text, column.note, column.use)]
    outputs = [*tab.pending, *tab.sampled, *columns, tab.note, *tab.buttons]

    async def answer(visit: gr.Request, values: tuple[Any, ...], ask: Callable[[], Ask]) -> AsyncGenerator[Any]:
        try:
            _idle(visitors, visit)
            wish = wanted(backend, ask(), *values)
        except (GraniteDemoError, TypeError, ValueError, AttributeError) as error:
            yield {tab.note: note_html(told(error), "error")}
            return
        with visitors.answering(session(visit)) as stop:
            async with aclosing(growing(tab, own(backend, visit), wish, stop)) as updates:
                async for update in updates:
                    yield update

    async def go_on(
        visit: gr.Request, text: str | None, tree: Tree, special: Any, samples: Any, *values: Any
    ) -> AsyncGenerator[Any]:
        async with aclosing(answer(visit, values, lambda: asked(tree, text, special, samples))) as updates:
            async for update in updates:
                yield update

    async def pick(visit: gr.Request, event: gr.EventData, tree: Tree, *values: Any) -> AsyncGenerator[Any]:
        async with aclosing(answer(visit, values, lambda: picked(tree, *token_view.picked(event)))) as updates:
            async for update in updates:
                yield update

    async def stop(visit: gr.Request) -> Any:
        return (gr.skip(),) * len(tab.buttons) if visitors.stop(session(visit)) else buttons(busy=False)

    values = [tab.show, tab.tint, *tab.constraint.components, *preferences.components]
    tab.run.click(go_on, [tab.prompt, tab.tree, tab.special, tab.samples, *values], outputs, **STREAMING)
    tab.view.select(pick, [tab.tree, *values], outputs, **STREAMING)
    tab.stop.click(stop, None, tab.buttons, **DIRECT)


def check_pending(tree: Tree, text: str, drafts: Any) -> None:
    """Raise InvalidRequestError where to accept would lose samples, or put a continuation behind another text."""
    if tree.head is None and drafts:
        raise InvalidRequestError("Take one of the samples first, or discard them all.")
    if tree.head is not None and tree.prompt != text:
        raise InvalidRequestError("The text was changed since. Undo the change to accept, or discard the continuation.")


def wire_pending(tab: WriteTab, visitors: Visitors) -> None:
    """What is done with a continuation: accept, discard, walk its branches, take a sample."""

    def accept(
        visit: gr.Request, text: str | None, put: Any, history: History, tree: Tree, drafts: Any
    ) -> tuple[Any, ...]:
        _idle(visitors, visit)
        check_pending(tree, text or "", drafts)
        before = seen(history, text or "", put)
        after = accepted(before, before.text + token_tree.text(tree))
        return after.text, *history_values(after), *pending_values(Tree(), "probability"), *no_samples()

    def discard(visit: gr.Request) -> tuple[Any, ...]:
        _idle(visitors, visit)
        return *pending_values(Tree(), "probability"), *no_samples()

    def walk(visit: gr.Request, event: gr.EventData, tree: Tree, tint: Tint) -> tuple[Any, ...]:
        _idle(visitors, visit)
        return pending_values(token_tree.shown(tree, run_of(event)), tint)

    def use(number: int) -> Callable[..., tuple[Any, ...]]:
        def take(visit: gr.Request, drafts: tuple[Tree | None, ...] | None, tint: Tint) -> tuple[Any, ...]:
            _idle(visitors, visit)
            tree = drafts[number] if drafts and number < len(drafts) else None
            if tree is None:
                raise InvalidRequestError("There is no such sample any more. Continue once more.")
            return *pending_values(tree, tint), *no_samples()

        return take

    def on(event: Any, handler: Callable[..., tuple[Any, ...]], inputs: list[Any], outputs: list[Any]) -> None:
        event(forgiving(handler, len(outputs)), inputs, [*outputs, tab.note], **DIRECT)

    on(
        tab.accept.click,
        accept,
        [*tab.typed, tab.tree, tab.drafts],
        [tab.prompt, *tab.edited, *tab.pending, *tab.sampled],
    )
    on(tab.discard.click, discard, [], [*tab.pending, *tab.sampled])
    on(tab.branches.select, walk, [tab.tree, tab.tint], tab.pending)
    on(tab.tint.input, lambda tree, tint: pending_values(tree, tint)[-1:], [tab.tree, tab.tint], [tab.view])
    for number, column in enumerate(tab.columns):
        on(column.use.click, use(number), [tab.drafts, tab.tint], [*tab.pending, *tab.sampled])


async def counted(backend: Backend, text: str | None, special: Any) -> tuple[Any, ...]:
    """What is shown of the text's tokens."""
    status = backend.status()
    if why := status.unable_to("token ids"):
        return counted_values(None, why)
    if not text:
        return counted_values(None, "The text is empty.")
    try:
        request = GenerationRequest(prompt=text, special_tokens=bool(special))
        # Another server may tell how many there are, but not which.
        view = await backend.inspect(request, parts=True) or await backend.inspect(request)
    except GraniteDemoError as error:
        return counted_values(None, error.user_text)
    return counted_values(view, UNTOLD if status.stage == "ready" else "")


def wire_text(tab: WriteTab, backend: Backend, ready: list[Any]) -> None:
    """Undo and redo, and what is known of the text after a pause in typing."""

    async def count(visit: gr.Request, text: str | None, special: Any) -> tuple[Any, ...]:
        await asyncio.sleep(PAUSE_SECONDS)
        return await counted(own(backend, visit), text, special)

    def record(text: str | None, put: Any, history: History) -> tuple[Any, ...]:
        return history_values(seen(history, text or "", put))

    def undo(text: str | None, put: Any, history: History) -> tuple[Any, ...]:
        before = undone(seen(history, text or "", put))
        return before.text, *history_values(before)

    def redo(text: str | None, put: Any, history: History) -> tuple[Any, ...]:
        after = redone(seen(history, text or "", put))
        return after.text, *history_values(after)

    changes = [tab.prompt.change, tab.special.change, *ready]
    known = follow(changes, count, [tab.prompt, tab.special], [tab.counted, tab.ids])
    # After the pause, and with what stands there then.
    known.then(record, tab.typed, tab.edited, **DIRECT)
    tab.undo.click(undo, tab.typed, [tab.prompt, *tab.edited], **DIRECT)
    tab.redo.click(redo, tab.typed, [tab.prompt, *tab.edited], **DIRECT)
