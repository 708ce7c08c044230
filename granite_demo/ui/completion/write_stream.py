"""What the Write tab shows while a text is continued, once or in several samples."""

import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from granite_demo.backend import Backend
from granite_demo.errors import InvalidRequestError
from granite_demo.types.constraints import Constraint
from granite_demo.types.sampling_params import SamplingParams
from granite_demo.ui.completion import token_tree, token_view
from granite_demo.ui.completion.constraint import cut_words, to_constraint
from granite_demo.ui.completion.continuation import ALTERNATIVES, MAX_SAMPLES, continued, grown, sampled, seeded, start
from granite_demo.ui.completion.token_tree import Tree
from granite_demo.ui.completion.token_view import Tint
from granite_demo.ui.completion.write import WriteTab, no_samples, pending_values
from granite_demo.ui.html import note_html
from granite_demo.ui.settings import to_sampling
from granite_demo.ui.streaming import Latest, Snapshot

VIEW_SECONDS = 1.0
"""Between two token views of a growing continuation: each is sent whole."""
WAITING = "Waiting for the first token"

Update = dict[Any, Any]
"""New values of components."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is to be continued: ``run``, the last one of the tree, by itself, or the tree by new runs."""

    tree: Tree
    run: int | None = None
    samples: int = 1
    """0: nothing, only shown."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How it is to be continued."""

    ask: Ask
    tint: Tint
    samplings: list[SamplingParams]
    constraint: Constraint | None


def asked(tree: Tree, text: str | None, special: Any, samples: Any) -> Ask:
    """The text is to be continued, or what already continues it. Raises InvalidRequestError."""
    if not text:
        raise InvalidRequestError("The prompt is empty. Write something to continue from.")
    if isinstance(samples, bool) or not isinstance(samples, int) or not 1 <= samples <= MAX_SAMPLES:
        raise InvalidRequestError(f"Choose 1 to {MAX_SAMPLES} samples.")
    return Ask(start(tree, text, bool(special)), samples=samples)


def picked(tree: Tree, position: int, token_id: int) -> Ask:
    """An alternative was picked: a branch that is to be continued, unless it is there or ends. Raises."""
    branch, new = token_tree.branched(tree, position, token_id, token_view.CONTROL.fullmatch)
    if not new or (branch.head is not None and branch.runs[branch.head].ended):
        return Ask(branch, samples=0)
    return Ask(branch, run=branch.head)


def wanted(
    backend: Backend, ask: Ask, show: Any, tint: Any, kind: Any, schema: Any, pattern: Any, choices: Any, *values: Any
) -> Wish:
    """``ask`` with the visitor's options and settings. Raises InvalidRequestError."""
    tint = "entropy" if tint == "entropy" else "probability"
    if not ask.samples:
        return Wish(ask, tint, [], None)
    constraint = to_constraint(kind, schema, pattern, choices)
    able = show and not backend.status().unable_to("log probabilities")
    sampling = replace(to_sampling(*values), logprobs=ALTERNATIVES if able else None, constraint=constraint)
    samplings = seeded(sampling, ask.samples)
    token_tree.added(ask.tree, [token_tree.next_run(ask.tree)] * (0 if ask.run is not None else ask.samples))
    return Wish(ask, tint, samplings, constraint)


async def growing(tab: WriteTab, backend: Backend, wish: Wish, stop: threading.Event) -> AsyncGenerator[Update]:
    """Yield what the tab shows while ``wish`` comes true."""
    tree = wish.ask.tree
    shown = dict(zip(tab.pending, pending_values(tree, wish.tint), strict=True))
    if not wish.samplings:
        yield {**shown, tab.note: ""}
        return
    many = len(wish.samplings) > 1
    show = _several if many else _one
    busy = dict(zip(tab.buttons, buttons(busy=True), strict=True))
    columns = _columns(tab, len(wish.samplings) if many else 0)
    yield {**shown, **columns, tab.branches: "", tab.note: note_html(WAITING), **busy}
    latest: Latest = [None] * len(wish.samplings)
    viewed = 0.0
    async with aclosing(continued(backend, tree, wish.samplings, stop)) as states:
        async for latest in states:
            fresh = time.monotonic() - viewed >= VIEW_SECONDS
            viewed = time.monotonic() if fresh else viewed
            yield show(tab, wish, latest, fresh)
    idle = dict(zip(tab.buttons, buttons(busy=False), strict=True))
    yield {**(_several_done if many else _one_done)(tab, wish, latest), **idle}


def buttons(*, busy: bool) -> tuple[Any, ...]:
    """Continue or Stop, and what has to wait for the end: a note would go under in those of the answer."""
    later = (gr.Button(interactive=not busy) for _ in range(2))
    return gr.Button(visible=not busy), gr.Button(visible=busy), *later


def _one(tab: WriteTab, wish: Wish, latest: Latest, fresh: bool) -> Update:
    shot = latest[0]
    if shot is None:
        return {}
    update: Update = {
        tab.output: token_tree.text(wish.ask.tree) + shot.answer.text,
        tab.note: note_html(shot.note, shot.kind),
    }
    if fresh and shot.answer.scored:
        known = (*token_tree.tokens(wish.ask.tree), *shot.answer.scored)
        update[tab.view] = token_view.tokens_html(known, wish.tint, clickable=False)
    return update


def _one_done(tab: WriteTab, wish: Wish, latest: Latest) -> Update:
    shot = latest[0]
    if shot is None:
        return {**dict(zip(tab.pending, pending_values(wish.ask.tree, wish.tint), strict=True)), tab.note: ""}
    tree = grown(wish.ask.tree, wish.ask.run, shot.answer)
    return {**dict(zip(tab.pending, pending_values(tree, wish.tint), strict=True)), tab.note: _note(wish, shot)}


def _several(tab: WriteTab, wish: Wish, latest: Latest, fresh: bool) -> Update:
    update: Update = {}
    for column, shot in zip(tab.columns, latest, strict=False):
        if shot:
            update |= {column.text: shot.answer.text, column.note: note_html(shot.note, shot.kind)}
    return update


def _several_done(tab: WriteTab, wish: Wish, latest: Latest) -> Update:
    drafts = sampled(wish.ask.tree, [shot.answer if shot else None for shot in latest])
    update: Update = dict(zip(tab.pending, pending_values(wish.ask.tree, wish.tint), strict=True))
    update |= {tab.drafts: drafts, tab.note: note_html("Take one of the samples, or continue for others.")}
    columns = zip(tab.columns, latest, drafts, wish.samplings, strict=False)
    for column, shot, draft, sampling in columns:
        label = f"Sample · seed {sampling.seed}"
        update[column.use] = gr.Button(visible=draft is not None)
        if shot:
            update[column.text] = gr.Textbox(value=shot.answer.text, label=label)
            update[column.note] = _note(wish, shot)
    return update


def _columns(tab: WriteTab, count: int) -> Update:
    """The columns of so many samples, empty, and no others."""
    update = dict(zip(tab.sampled, no_samples(), strict=True))
    for column in tab.columns[:count]:
        update |= {column.box: gr.Column(visible=True), column.text: "", column.note: note_html("Waiting")}
        update[column.use] = gr.Button(visible=False)
    return update


def _note(wish: Wish, shot: Snapshot) -> str:
    if shot.kind == "error":
        return note_html(shot.note, "error")
    reason = shot.answer.finish.reason if shot.answer.finish else None
    return note_html(shot.note + cut_words(wish.constraint, reason, wish.samplings[0].stop))
