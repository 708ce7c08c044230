"""The branches as markup, without a page."""

from math import log

import gradio as gr
import pytest

from granite_demo.errors import InvalidRequestError
from granite_demo.types.logprobs import ScoredToken
from granite_demo.ui.completion import token_tree
from granite_demo.ui.completion.branches import branches_html, run_of
from granite_demo.ui.completion.token_tree import Run, Tree


def test_a_fork_shows_its_ways_and_the_arrows_to_them() -> None:
    first = Run(tokens=(ScoredToken(1, "a"), ScoredToken(2, "<b>", log(0.5))), text="a<b>", ends=(1, 4))
    second = Run(0, 1, (ScoredToken(3, "\n", log(0.12)),), "\n", (1,))
    third = Run(0, 1, text="only a text, which is longer than what is shown")
    tree = token_tree.shown(token_tree.added(Tree("x"), [first, second, third]), 1)
    html = branches_html(tree)
    assert "at <q>&lt;b&gt;</q>" in html
    assert ">2/3<" in html
    assert '<b aria-current="true"><q>↵</q> 12 %</b>' in html
    assert 'data-run="0" title="Previous branch"' in html
    assert 'data-run="2" title="Next branch"' in html
    assert "<q>only a text, which is lo…</q></button>" in html
    assert 'title="Previous branch"' not in branches_html(token_tree.shown(tree, 0))
    assert 'title="Next branch"' not in branches_html(token_tree.shown(tree, 2))


def test_without_forks_nothing_is_shown() -> None:
    assert branches_html(Tree("x")) == ""
    assert branches_html(token_tree.added(Tree("x"), [Run(text="y")])) == ""


def test_samples_begin_at_the_start_or_after_the_end() -> None:
    samples = token_tree.added(Tree("x"), [Run(text="one"), Run(text="two")])
    assert "at the start" in branches_html(samples)
    more = token_tree.added(samples, [Run(0, 0, text="a"), Run(0, 0, text="b")])
    assert "after the end" in branches_html(more)


@pytest.mark.parametrize("run", ["0", None, True, 1.5])
def test_a_damaged_choice_is_refused(run: object) -> None:
    with pytest.raises(InvalidRequestError):
        run_of(gr.EventData(None, {"run": run}))
    assert run_of(gr.EventData(None, {"run": 3})) == 3
