"""Fill in the middle: the request, and how the text looks with what was filled in."""

import html
import re
from dataclasses import replace

import pytest

from granite_demo.errors import InvalidRequestError
from granite_demo.ui.completion.fill import AROUND_GAP, CODE_LANGUAGES, filled_html, shown_values, to_request
from granite_demo.ui.settings import DEFAULTS
from tests.fakes import READY, FakeBackend

UNABLE = replace(READY, unable=(("fill in the middle", "No tokens for it."),))


def text_of(markup: str) -> str:
    return html.unescape(re.sub("<[^>]*>", "", markup))


def test_both_texts_go_into_the_request_as_they_are() -> None:
    request = to_request(FakeBackend(), "  a\n", "\n  b ", *DEFAULTS)
    assert (request.prompt, request.suffix, request.special_tokens) == ("  a\n", "\n  b ", False)
    assert to_request(FakeBackend(), None, "b", *DEFAULTS).prompt == ""
    assert to_request(FakeBackend(), "a", None, *DEFAULTS).suffix == ""


def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="before the gap"):
        to_request(FakeBackend(), "", None, *DEFAULTS)


def test_a_model_that_cannot_says_why() -> None:
    backend = FakeBackend()
    backend.state = UNABLE
    with pytest.raises(InvalidRequestError, match="No tokens for it"):
        to_request(backend, "a", "b", *DEFAULTS)
    reason, body = shown_values(UNABLE)
    assert "No tokens for it." in reason.value
    assert reason.visible
    assert not body.visible
    reason, body = shown_values(READY)
    assert not reason.visible
    assert body.visible


@pytest.mark.parametrize("language", [*CODE_LANGUAGES, None, "no such language", 7])
def test_no_character_is_lost_in_the_colours(language: object) -> None:
    before, middle, after = "def f(x):\n\t'a <b>", " & c'\r\n# é", "\n  return 12\n\n"
    markup = filled_html(before, middle, after, language)
    assert text_of(markup) == before + middle + after
    marked = re.search("<mark>(.*)</mark>", markup, re.DOTALL)
    assert marked
    assert text_of(marked[1]) == middle


def test_code_is_highlighted_across_the_gap() -> None:
    markup = filled_html("x = 'ab", "cd'", " # note", "python")
    assert '<i class="s">cd</i>' in markup
    assert '<i class="c"># note</i>' in markup
    assert "<i" not in filled_html("x = 'ab", "cd'", " # note", "text")


def test_only_what_is_near_is_shown_of_long_texts() -> None:
    markup = text_of(filled_html("a" * 9999, "MID", "b" * 9999))
    assert markup == "…" + "a" * AROUND_GAP + "MID" + "b" * AROUND_GAP + "…"


def test_nothing_filled_shows_nothing() -> None:
    assert filled_html("a", "", "b") == filled_html("a", None, "b") == ""
