"""The Write tab: a text, and its continuation apart from it until it is accepted. Its layout and its events."""

import asyncio
import html
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from granite_demo.backend import Backend
from granite_demo.chat.answer import waiting_words
from granite_demo.errors import GraniteDemoError, InvalidRequestError
from granite_demo.types.model_status import Feature, ModelStatus
from granite_demo.types.prompt_view import PromptView
from granite_demo.types.requests import GenerationRequest
from granite_demo.ui.completion import branches as branching
from granite_demo.ui.completion import constraint as constraining
from granite_demo.ui.completion import token_tree, token_view
from granite_demo.ui.completion.constraint import ConstraintPanel, cut_words
from granite_demo.ui.completion.continuation import (
    MAX_SAMPLES,
    Continuation,
    Target,
    continued,
    end_of_branch,
    end_of_text,
    grown,
    sampled,
    to_continuation,
)
from granite_demo.ui.completion.edit_history import History, accepted, redone, seen, undone
from granite_demo.ui.completion.token_tree import Tree
from granite_demo.ui.completion.token_view import Tint
from granite_demo.ui.executor import off_loop
from granite_demo.ui.gradio_patches.events import DIRECT, follow, forgiving
from granite_demo.ui.html import note_html
from granite_demo.ui.settings import Preferences
from granite_demo.ui.streaming import (
    STILL_WRITING,
    Latest,
    Snapshot,
    StreamingPanel,
    Update,
    Visit,
    Visitors,
    own,
    session,
)
from granite_demo.ui.theme import script

EXAMPLES = [
    "Once upon a time, on a small island in the north,",
    "Three reasons to learn a second language:\n1.",
    "def fibonacci(n):\n    ",
]
TINTS = [("Probability", "probability"), ("Entropy", "entropy")]
SWITCHES: tuple[Feature, ...] = ("log probabilities", "special tokens")
MAX_IDS = 2000
"""Tokens of the text that are listed."""
PAUSE_SECONDS = 0.5
"""After the last key, before the tokens of the text are counted."""
VIEW_SECONDS = 1.0
"""Between two token views of a continuation that is being written: each is sent whole."""
UNTOLD = "The other server does not tell which tokens these are."


@dataclass(frozen=True, slots=True)
class SampleColumn:
    """One of several samples."""

    box: gr.Column
    text: gr.Textbox
    note: gr.HTML
    use: gr.Button


@dataclass(frozen=True, slots=True)
class WriteTab:
    """The tab's components."""

    history: gr.State
    """``History`` of the text."""
    put: gr.Number
    """Its ``put``, as the browser has it: shows which of two updates came first."""
    tree: gr.State
    """``Tree`` of the continuations that are not accepted."""
    drafts: gr.State
    """A tree for each sample, while the visitor has not chosen one."""
    prompt: gr.Textbox
    run: gr.Button
    stop: gr.Button
    accept: gr.Button
    discard: gr.Button
    undo: gr.Button
    redo: gr.Button
    note: gr.HTML
    show: gr.Checkbox
    tint: gr.Radio
    samples: gr.Radio
    special: gr.Checkbox
    columns: list[SampleColumn]
    output: gr.Textbox
    branches: gr.HTML
    view: gr.HTML
    constraint: ConstraintPanel
    counted: gr.Accordion
    ids: gr.HTML

    @property
    def pending(self) -> list[Any]:
        """What ``pending_values`` fills."""
        return [self.tree, self.output, self.branches, self.view]

    @property
    def buttons(self) -> list[Any]:
        """What ``buttons`` fills."""
        return [self.run, self.stop, self.accept, self.discard]

    @property
    def typed(self) -> list[Any]:
        """The inputs of an event that reads the text in the box."""
        return [self.prompt, self.put, self.history]

    @property
    def edited(self) -> list[Any]:
        """What ``history_values`` fills."""
        return [self.history, self.put, self.undo, self.redo]

    @property
    def sampled(self) -> list[Any]:
        """What ``no_samples`` fills."""
        return [self.drafts, *(column.box for column in self.columns)]

    @property
    def shown(self) -> list[Any]:
        """What ``shown_values`` fills."""
        return [self.show, self.special, self.constraint.kind]


def pending_values(tree: Tree, tint: Tint) -> tuple[Any, ...]:
    """The shown branch."""
    known = token_tree.tokens(tree)
    marked = token_view.tokens_html(known, tint) if known else ""
    return tree, token_tree.text(tree), branching.branches_html(tree), marked


def history_values(history: History) -> tuple[Any, ...]:
    """The history, and the buttons Undo and Redo."""
    undo, redo = gr.Button(interactive=bool(history.past)), gr.Button(interactive=bool(history.future))
    return history, history.put, undo, redo


def no_samples() -> tuple[Any, ...]:
    """No samples, and no columns for them."""
    return None, *(gr.Column(visible=False) for _ in range(MAX_SAMPLES))


def shown_values(status: ModelStatus) -> tuple[Any, ...]:
    """The options, off and with the reason where the model, its engine or another server lacks the feature."""
    show, special = (_switch(status.unable_to(feature)) for feature in SWITCHES)
    return show, special, *constraining.shown_values(status)


def _switch(why: str) -> gr.Checkbox:
    return gr.Checkbox(value=False, interactive=False, info=why) if why else gr.Checkbox(interactive=True, info="")


def counted_values(view: PromptView | None, why: str = "") -> tuple[Any, ...]:
    """The number of tokens of the text, and the tokens; or ``why`` they are not known."""
    reason = f"<p>{html.escape(why or 'Known when the model is ready.')}</p>"
    if view is None:
        return gr.Accordion(label="Tokens"), reason
    label = f"{view.tokens:,} token{'s' * (view.tokens != 1)} of {view.context_length:,}"
    if not view.parts:
        return gr.Accordion(label=label), reason
    pairs = [pair for part in view.parts for pair in part.tokens]
    items = "".join(f"<li><b>{token_view.visible(text)}</b> {index}</li>" for index, text in pairs[:MAX_IDS])
    more = f"<p>The first {MAX_IDS:,} are listed.</p>" if len(pairs) > MAX_IDS else ""
    return gr.Accordion(label=label), f'<ol class="token-ids">{items}</ol>{more}'


def layout(backend: Backend) -> WriteTab:
    """Place the components. Call inside the tab."""
    status = backend.status()
    history, tree, drafts = gr.State(History()), gr.State(Tree()), gr.State()
    with gr.Column(elem_id="write"):
        put = gr.Number(0, visible=False, precision=0)
        gr.HTML(js_on_load=script("assets/write.js"), elem_id="write-keys")
        prompt = gr.Textbox(
            label="Text",
            elem_id="prompt",
            lines=6,
            max_lines=20,
            info="Sent to the model as it stands, without a chat template. Ctrl+Enter continues it.",
            placeholder="Write the beginning of a text.",
        )
        with gr.Row(elem_id="write-buttons"):
            run = gr.Button("Continue", variant="primary", elem_id="run", min_width=100)
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop", min_width=100)
            accept = gr.Button("Accept", elem_id="accept", min_width=80)
            discard = gr.Button("Discard", elem_id="discard", min_width=80)
            undo = gr.Button("Undo", interactive=False, elem_id="undo", min_width=80)
            redo = gr.Button("Redo", interactive=False, elem_id="redo", min_width=80)
        note = gr.HTML(elem_id="completion-note")
        output = gr.Textbox(
            label="Continuation, not accepted yet",
            elem_id="output",
            lines=3,
            max_lines=20,
            interactive=False,
            buttons=["copy"],
        )
        with gr.Row(elem_id="samples"):
            columns = [_column(number) for number in range(1, MAX_SAMPLES + 1)]
        branches, view = branching.view(), token_view.view("token-view")
        options = _options(status)
        constraint = constraining.layout(status)
        with gr.Accordion("Tokens", open=False, elem_id="counted") as counted:
            ids = gr.HTML(elem_id="token-ids")
        gr.Examples([[text] for text in EXAMPLES], [prompt], label="Examples")
    buttons = (run, stop, accept, discard, undo, redo)
    return WriteTab(
        history,
        put,
        tree,
        drafts,
        prompt,
        *buttons,
        note,
        *options,
        columns,
        output,
        branches,
        view,
        constraint,
        counted,
        ids,
    )


def _options(status: ModelStatus) -> tuple[gr.Checkbox, gr.Radio, gr.Radio, gr.Checkbox]:
    with gr.Row(elem_id="write-options"):
        why = status.unable_to("log probabilities")
        show = gr.Checkbox(not why, label="Show tokens", interactive=not why, info=why, elem_id="show-tokens")
        tint = gr.Radio(TINTS, value="probability", label="Tint by", elem_id="tint")
        samples = gr.Radio(list(range(1, MAX_SAMPLES + 1)), value=1, label="Samples", elem_id="sample-count")
        special = gr.Checkbox(False, label="Let the text spell control tokens", elem_id="special-tokens")
    return show, tint, samples, special


def _column(number: int) -> SampleColumn:
    with gr.Column(visible=False, min_width=150, elem_classes="sample") as box:
        text = gr.Textbox(
            label=f"Sample {number}", lines=5, max_lines=16, interactive=False, elem_id=f"sample-{number}"
        )
        note = gr.HTML(elem_id=f"sample-note-{number}")
        use = gr.Button("Use this one", size="sm", visible=False, elem_id=f"use-{number}")
    return SampleColumn(box, text, note, use)


def wire(tab: WriteTab, preferences: Preferences, backend: Backend, demo: gr.Blocks, ready: list[Any]) -> None:
    """Connect the events. ``ready`` are those after which another model may answer."""
    columns = [part for column in tab.columns for part in (column.text, column.note, column.use)]
    screen = [*tab.pending, *tab.sampled, *columns]
    panel = StreamingPanel(backend, tab.buttons, buttons, tab.note, screen)
    wire_continuing(tab, panel, preferences)
    panel.stop_on_leave(demo)
    wire_pending(tab, panel.visitors)
    wire_text(tab, backend, ready)
    constraining.wire(tab.constraint)
    follow(ready, lambda: shown_values(backend.status()), None, tab.shown)


def wire_continuing(tab: WriteTab, panel: StreamingPanel, preferences: Preferences) -> None:
    """Continue, Stop, and the alternatives of a token."""

    async def answer(visit: Visit, target: Target, values: tuple[Any, ...]) -> AsyncGenerator[Update]:
        continuation = to_continuation(visit.backend, target, *values)
        async with aclosing(updates_of(tab, visit, continuation)) as updates:
            async for update in updates:
                yield update

    def go_on(
        visit: Visit, text: str | None, tree: Tree, special: Any, samples: Any, *values: Any
    ) -> AsyncGenerator[Update]:
        return answer(visit, end_of_text(tree, text, special, samples), values)

    def pick(visit: Visit, tree: Tree, *values: Any) -> AsyncGenerator[Update]:
        return answer(visit, end_of_branch(tree, *token_view.picked(visit.event)), values)

    values = [tab.show, tab.tint, *tab.constraint.components, *preferences.components]
    panel.start("go_on", [tab.run.click], go_on, [tab.prompt, tab.tree, tab.special, tab.samples, *values])
    panel.start("pick", [tab.view.select], pick, [tab.tree, *values])
    panel.stop(tab.stop.click)


def _idle(visitors: Visitors, visit: gr.Request) -> None:
    if visitors.streaming(session(visit)):
        raise InvalidRequestError(STILL_WRITING)


def check_pending(tree: Tree, text: str, drafts: Any) -> None:
    """Raise InvalidRequestError where Accept would lose samples, or put a continuation after another text."""
    if tree.head is None and drafts:
        raise InvalidRequestError("Take one of the samples first, or discard them all.")
    if tree.head is not None and tree.prompt != text:
        raise InvalidRequestError("The text was changed since. Undo the change to accept, or discard the continuation.")


def wire_pending(tab: WriteTab, visitors: Visitors) -> None:
    """Accept or discard a continuation, show another of its branches, take a sample."""

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
        return pending_values(token_tree.shown(tree, branching.run_of(event)), tint)

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
    """The values that show the tokens of the text."""
    status = backend.status()
    if why := status.unable_to("token ids"):
        return counted_values(None, why)
    if not text:
        return counted_values(None, "The text is empty.")
    try:
        request = GenerationRequest(prompt=text, special_tokens=bool(special))
        # Another server can give the number of tokens without the tokens.
        view = await backend.inspect(request, parts=True) or await backend.inspect(request)
        return await off_loop(counted_values, view, UNTOLD if status.stage == "ready" else "")
    except GraniteDemoError as error:
        return counted_values(None, error.user_text)


def wire_text(tab: WriteTab, backend: Backend, ready: list[Any]) -> None:
    """Undo and Redo, and the tokens of the text after a pause in typing."""

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
    # After the pause, with the text that is in the box then.
    known.then(record, tab.typed, tab.edited, **DIRECT)
    tab.undo.click(undo, tab.typed, [tab.prompt, *tab.edited], **DIRECT)
    tab.redo.click(redo, tab.typed, [tab.prompt, *tab.edited], **DIRECT)


async def updates_of(tab: WriteTab, visit: Visit, continuation: Continuation) -> AsyncGenerator[Update]:
    """Yield what the tab shows while ``continuation`` is written."""
    tree = continuation.target.tree
    shown = _pending(tab, continuation, tree)
    count = len(continuation.samplings)
    if not count:
        yield {**shown, tab.note: ""}
        return
    show, done = (_several, _several_done) if count > 1 else (_one, _one_done)
    columns = _columns(tab, count if count > 1 else 0)
    yield {**visit.busy, **shown, **columns, tab.branches: "", tab.note: note_html(waiting_words(None))}
    latest: Latest = [None] * count
    viewed = 0.0
    async with aclosing(continued(visit.backend, tree, continuation.samplings, visit.stop)) as states:
        async for latest in states:
            fresh = time.monotonic() - viewed >= VIEW_SECONDS
            viewed = time.monotonic() if fresh else viewed
            yield show(tab, continuation, latest, fresh)
    yield done(tab, continuation, latest)


def buttons(busy: bool) -> tuple[Any, ...]:
    """Continue or Stop; Accept and Discard wait for the end."""
    later = (gr.Button(interactive=not busy) for _ in range(2))
    return gr.Button(visible=not busy), gr.Button(visible=busy), *later


def _pending(tab: WriteTab, continuation: Continuation, tree: Tree) -> Update:
    return dict(zip(tab.pending, pending_values(tree, continuation.tint), strict=True))


def _one(tab: WriteTab, continuation: Continuation, latest: Latest, fresh: bool) -> Update:
    shot = latest[0]
    if shot is None:
        return {}
    update: Update = {
        tab.output: token_tree.text(continuation.target.tree) + shot.answer.text,
        tab.note: note_html(shot.note, shot.kind),
    }
    if fresh and shot.answer.scored:
        known = (*token_tree.tokens(continuation.target.tree), *shot.answer.scored)
        update[tab.view] = token_view.tokens_html(known, continuation.tint, clickable=False)
    return update


def _one_done(tab: WriteTab, continuation: Continuation, latest: Latest) -> Update:
    shot = latest[0]
    if shot is None:
        return {**_pending(tab, continuation, continuation.target.tree), tab.note: ""}
    tree = grown(continuation.target.tree, continuation.target.run, shot.answer)
    return {**_pending(tab, continuation, tree), tab.note: _note(continuation, shot)}


def _several(tab: WriteTab, continuation: Continuation, latest: Latest, fresh: bool) -> Update:
    update: Update = {}
    for column, shot in zip(tab.columns, latest, strict=False):
        if shot:
            update |= {column.text: shot.answer.text, column.note: note_html(shot.note, shot.kind)}
    return update


def _several_done(tab: WriteTab, continuation: Continuation, latest: Latest) -> Update:
    drafts = sampled(continuation.target.tree, [shot.answer if shot else None for shot in latest])
    update: Update = _pending(tab, continuation, continuation.target.tree)
    update |= {tab.drafts: drafts, tab.note: note_html("Take one of the samples, or continue for others.")}
    columns = zip(tab.columns, latest, drafts, continuation.samplings, strict=False)
    for column, shot, draft, sampling in columns:
        label = f"Sample · seed {sampling.seed}"
        update[column.use] = gr.Button(visible=draft is not None)
        if shot:
            update[column.text] = gr.Textbox(value=shot.answer.text, label=label)
            update[column.note] = _note(continuation, shot)
    return update


def _columns(tab: WriteTab, count: int) -> Update:
    """``count`` empty columns for samples, and no others."""
    update = dict(zip(tab.sampled, no_samples(), strict=True))
    for column in tab.columns[:count]:
        update |= {column.box: gr.Column(visible=True), column.text: "", column.note: note_html("Waiting")}
        update[column.use] = gr.Button(visible=False)
    return update


def _note(continuation: Continuation, shot: Snapshot) -> str:
    if shot.kind == "error":
        return note_html(shot.note, "error")
    reason = shot.answer.finish.reason if shot.answer.finish else None
    return note_html(shot.note + cut_words(continuation.constraint, reason, continuation.samplings[0].stop))
