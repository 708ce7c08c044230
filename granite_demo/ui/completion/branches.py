"""The branches of a continuation, to be walked: each fork of the shown one, with arrows to the ways beside it."""

import html
from math import exp

import gradio as gr

from granite_demo.errors import InvalidRequestError
from granite_demo.ui.completion import token_tree
from granite_demo.ui.completion.token_tree import Fork, Tree

LISTEN_JS = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-run]");
  if (button) trigger("select", { run: Number(button.dataset.run) });
});"""
SHOWN = 24
"""Characters of a token or of a text without tokens."""


def view() -> gr.HTML:
    """The component to show ``branches_html`` in. ``run_of`` reads its event ``select``."""
    return gr.HTML(js_on_load=LISTEN_JS, elem_id="branches", apply_default_css=False)


def run_of(event: gr.EventData) -> int:
    """The run that a visitor chose. Raises InvalidRequestError."""
    run = getattr(event, "run", None)
    if not isinstance(run, int) or isinstance(run, bool):
        raise InvalidRequestError("There is no such branch. Reload the page.")
    return run


def branches_html(tree: Tree) -> str:
    """A line for each fork of the shown branch; empty where there is none."""
    found = token_tree.forks(tree)
    if not found:
        return ""
    rows = "".join(f"<li>{_fork(tree, fork)}</li>" for fork in found)
    return f'<nav class="branches" aria-label="Branches"><ol>{rows}</ol></nav>'


def _fork(tree: Tree, fork: Fork) -> str:
    at = fork.choices.index(fork.chosen)
    older = _arrow(fork.choices[at - 1], "‹", "Previous branch") if at else ""
    newer = _arrow(fork.choices[at + 1], "›", "Next branch") if at + 1 < len(fork.choices) else ""
    ways = " ".join(_way(tree, fork, run) for run in fork.choices)
    return f'{older}<span class="count">{at + 1}/{len(fork.choices)}</span>{newer} {_place(tree, fork)} {ways}'


def _arrow(run: int, sign: str, title: str) -> str:
    return f'<button type="button" data-run="{run}" title="{title}" aria-label="{title}">{sign}</button>'


def _place(tree: Tree, fork: Fork) -> str:
    if fork.parent is None:
        return "<span>at the start</span>"
    run = tree.runs[fork.parent]
    if fork.at >= len(run.tokens):
        return "<span>after the end</span>"
    return f"<span>at {_quoted(run.tokens[fork.at].text)}</span>"


def _way(tree: Tree, fork: Fork, run: int) -> str:
    token = token_tree.first_token(tree, run, fork.parent, fork.at)
    words = _quoted(token.text if token else tree.runs[run].text)
    if token and token.logprob is not None:
        words += f" {100 * exp(token.logprob):.2g} %"
    if run == fork.chosen:
        return f'<b aria-current="true">{words}</b>'
    return f'<button type="button" data-run="{run}" title="Show this branch">{words}</button>'


def _quoted(text: str) -> str:
    short = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    return f"<q>{html.escape(short.replace(chr(10), '↵'))}</q>"
