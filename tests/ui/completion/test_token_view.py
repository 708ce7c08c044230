"""The token view: every token is there, tinted, escaped, and its numbers with it."""

import html
import json
import re
from math import inf, log
from types import SimpleNamespace
from typing import Any

import pytest

from granite_demo.errors import InvalidRequestError
from granite_demo.types.logprobs import ScoredToken, TokenAlternative
from granite_demo.ui.completion.token_view import picked, tokens_html, visible


def spans(markup: str) -> list[tuple[list[str], str]]:
    body = markup.split('class="tokens"')[1]
    return [(classes.split(), text) for classes, text in re.findall(r'<b class="([^"]*)">(.*?)</b>', body, re.DOTALL)]


def rows(markup: str) -> list[Any]:
    found = re.search(r"data-rows='([^']*)'", markup)
    assert found
    return json.loads(html.unescape(found[1]))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("probability", "step"),
    [(1.0, "s0"), (0.71, "s0"), (0.69, "s1"), (0.39, "s2"), (0.09, "s3"), (0.019, "s4"), (0.0019, "s5"), (1e-9, "s5")],
)
def test_the_less_likely_the_stronger(probability: float, step: str) -> None:
    assert spans(tokens_html([ScoredToken(1, "a", log(probability))])) == [([step], "a")]


@pytest.mark.parametrize(("entropy", "step"), [(0.0, "s0"), (0.1, "s1"), (0.99, "s2"), (3.4, "s4"), (3.5, "s5")])
def test_entropy_is_a_tint_of_its_own(entropy: float, step: str) -> None:
    markup = tokens_html([ScoredToken(1, "a", -9.0, entropy=entropy)], "entropy")
    assert spans(markup) == [([step], "a")]
    assert "Entropy in nats" in markup
    assert "Probability" not in markup


def test_what_nothing_predicts_has_no_tint() -> None:
    for tint in ("probability", "entropy"):
        assert spans(tokens_html([ScoredToken(1, "a")], tint)) == [(["none"], "a")]


def test_markup_in_tokens_stays_text() -> None:
    evil = "</b><img src=x onerror='1'>\"&"
    token = ScoredToken(1, evil, -0.1, alternatives=(TokenAlternative(2, evil, -1.0),))
    markup = tokens_html([token])
    assert "<img" not in re.sub(r"data-rows='[^']*'", "", markup)
    assert spans(markup)[0][1] == html.escape(evil)
    assert rows(markup)[0][4] == [[2, evil, -1.0, None]]


def test_white_space_can_be_seen_and_control_tokens_are_marked() -> None:
    texts = [" the", "   ", "a\n\n", "\tx", "", "<|end_of_text|>", "<fim_prefix>", "</think>", "<div>", " "]
    found = spans(tokens_html([ScoredToken(1, text, -0.1) for text in texts]))
    assert [classes[1:] for classes, _ in found] == [
        ["spaced"], ["blank"], [], [], [], ["control"], ["control"], ["control"], [], ["blank"],
    ]  # fmt: skip
    assert [visible(text) for text in texts[:5]] == [" the", "   ", "a↵\n↵\n", "→\tx", "∅"]
    assert [text for _, text in found] == [visible(text) for text in texts]


def test_the_numbers_come_with_it() -> None:
    others = (TokenAlternative(3, "b", -0.25, -0.125), TokenAlternative(4, "c", -3.0, -inf))
    markup = tokens_html([ScoredToken(7, "a", -1.23456, -inf, 0.98765, others)])
    assert rows(markup) == [[7, -1.2346, "cut", 0.988, [[3, "b", -0.25, -0.125], [4, "c", -3.0, "cut"]]]]
    assert 'class="token-view picks"' in markup
    assert 'class="token-view"' in tokens_html([], clickable=False)


def test_one_element_a_token() -> None:
    markup = tokens_html([ScoredToken(1, "a", -0.1, alternatives=(TokenAlternative(3, "b", -0.25),) * 20)] * 2000)
    assert len(re.findall(r"<\w", markup)) < 2000 + 20


def test_what_is_picked_is_checked() -> None:
    assert picked(SimpleNamespace(position=3, id=17)) == (3, 17)  # type: ignore[arg-type]
    for position, token in ((-1, 1), (1, -1), (True, 1), ("1", 1), (None, 1), (1.0, 1)):
        with pytest.raises(InvalidRequestError):
            picked(SimpleNamespace(position=position, id=token))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError):
        picked(SimpleNamespace())  # type: ignore[arg-type]
