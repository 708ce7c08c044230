"""The Write tab: a text whose continuation stands apart until it is accepted. Its layout and what its parts show."""

import html
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from granite_demo.backend import Backend
from granite_demo.types.model_status import Feature, ModelStatus
from granite_demo.types.prompt_view import PromptView
from granite_demo.ui.completion import branches as branching
from granite_demo.ui.completion import constraint as constraining
from granite_demo.ui.completion import token_tree, token_view
from granite_demo.ui.completion.constraint import ConstraintPanel
from granite_demo.ui.completion.continuation import MAX_SAMPLES
from granite_demo.ui.completion.token_tree import Tree
from granite_demo.ui.completion.token_view import Tint
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
UNTOLD = "The other server does not tell which tokens these are."


@dataclass(frozen=True, slots=True)
class Column:
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
    """Its ``put``, as the browser knows it: tells which of two answers at once came first."""
    tree: gr.State
    """``Tree`` of what is not accepted."""
    drafts: gr.State
    """A tree for each of the samples from which one is to be chosen."""
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
    columns: list[Column]
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
        """What ``growing.buttons`` fills."""
        return [self.run, self.stop, self.accept, self.discard]

    @property
    def typed(self) -> list[Any]:
        """What an event needs that takes the text as it stands in the box."""
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


@dataclass(frozen=True, slots=True)
class History:
    """The text now, what it was before and what was undone; the nearest states stand last."""

    text: str = ""
    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    put: int = 0
    """How often a text was put into the box, beside what was typed there."""


def history_values(history: History) -> tuple[Any, ...]:
    """The text's states, and what can be done with them."""
    undo, redo = gr.Button(interactive=bool(history.past)), gr.Button(interactive=bool(history.future))
    return history, history.put, undo, redo


def no_samples() -> tuple[Any, ...]:
    """The columns of the samples put away."""
    return None, *(gr.Column(visible=False) for _ in range(MAX_SAMPLES))


def shown_values(status: ModelStatus) -> tuple[Any, ...]:
    """What the model, its engine or another server is unable to do, with the reason."""
    show, special = (_switch(status.unable_to(feature)) for feature in SWITCHES)
    return show, special, *constraining.shown_values(status)


def _switch(why: str) -> gr.Checkbox:
    return gr.Checkbox(value=False, interactive=False, info=why) if why else gr.Checkbox(interactive=True, info="")


def counted_values(view: PromptView | None, why: str = "") -> tuple[Any, ...]:
    """How many tokens the text has, and which, or ``why`` that is not known."""
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


def _column(number: int) -> Column:
    with gr.Column(visible=False, min_width=150, elem_classes="sample") as box:
        text = gr.Textbox(
            label=f"Sample {number}", lines=5, max_lines=16, interactive=False, elem_id=f"sample-{number}"
        )
        note = gr.HTML(elem_id=f"sample-note-{number}")
        use = gr.Button("Use this one", size="sm", visible=False, elem_id=f"use-{number}")
    return Column(box, text, note, use)


MAX_STATES = 100
MAX_CHARACTERS = 2_000_000
"""Of all earlier states together."""


def seen(history: History, text: str, put: int | None) -> History:
    """The box has ``text``, and has been put ``put`` texts: with fewer than there were, it is a text of before."""
    # With more it is a page that outlived a restart of the server, and the text is all that is left.
    return history if (put or 0) < history.put else written(history, text)


def accepted(history: History, text: str) -> History:
    """``text`` is put into the box."""
    return replace(written(history, text), put=history.put + 1)


def written(history: History, text: str) -> History:
    """``text`` was typed. What was undone before is gone, unless nothing changed."""
    if text == history.text:
        return history
    past = (*history.past, history.text)[-MAX_STATES:]
    while sum(map(len, past)) > MAX_CHARACTERS:
        past = past[1:]
    return History(text, past, put=history.put)


def undone(history: History) -> History:
    """One state back, if there is one."""
    if not history.past:
        return history
    return History(history.past[-1], history.past[:-1], (*history.future, history.text), history.put + 1)


def redone(history: History) -> History:
    """One state forth, if there is one."""
    if not history.future:
        return history
    return History(history.future[-1], (*history.past, history.text), history.future[:-1], history.put + 1)
