"""Prompt X-ray: every token with its origin and id, and what changed."""

import re
import time
from typing import Any

import pytest

from granite_demo.types.prompt_view import Origin, PromptPart, PromptView
from granite_demo.ui.chat.prompt_xray import (
    MAX_DIFFED,
    MAX_KEPT,
    SHOWN_FIRST,
    SHOWN_LAST,
    difference_html,
    pack,
    raw_text,
    unpack,
    xray_html,
)


def part(origin: Origin, *tokens: tuple[int, str]) -> PromptPart:
    return PromptPart(origin, "".join(text for _, text in tokens), tokens)


def view(*parts: PromptPart, dropped: int = 0) -> PromptView:
    return PromptView(parts, sum(len(one.tokens) for one in parts), dropped, 1000)


def numbered(ids: list[int], origin: Origin = "user") -> PromptView:
    return view(part(origin, *((number, f"t{number} ") for number in ids)))


def words(html: str) -> str:
    return re.sub("<[^>]*>", "", html)


def tagged(html: str, tag: str) -> list[str]:
    return [words(found) for found in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)]


SMALL = view(part("control", (1, "<|role|>")), part("user", (2, "a & b"), (3, "\n")))


def test_every_token_has_its_origin_id_and_text() -> None:
    html = xray_html(SMALL)
    assert '<b class="o-control" title="1">&lt;|role|&gt;</b>' in html
    assert '<b class="o-user" title="2">a &amp; b</b><b class="o-user" title="3">↵\n</b>' in html
    assert html.count("<b ") == 3


def test_the_legend_counts_what_is_there() -> None:
    html = xray_html(SMALL)
    assert (
        '3 tokens:&ensp;<span class="o-control">control tokens</span> 1&ensp;<span class="o-user">user</span> 2' in html
    )
    assert "o-system" not in html


def test_markup_in_the_prompt_does_nothing() -> None:
    evil = view(part("user", (1, '<img src=x onerror="x">')), part("document", (2, "</b></div><script>")))
    for html in (xray_html(evil), difference_html(SMALL, evil)):
        assert "<img" not in html
        assert "<script" not in html
        assert html.count("</div>") == html.count("<div")


def test_a_token_without_text_can_be_seen() -> None:
    assert '<b class="o-user" title="5">·</b>' in xray_html(view(part("user", (5, ""))))


def test_dropped_messages_are_shown() -> None:
    assert "1,234 of the oldest messages" in xray_html(view(part("user", (1, "a")), dropped=1234))


@pytest.mark.parametrize("extra", [0, 1, 2000])
def test_a_long_prompt_shows_its_beginning_and_end(extra: int) -> None:
    count = SHOWN_FIRST + SHOWN_LAST + extra
    html = xray_html(numbered(list(range(count))))
    shown = [int(number) for number in re.findall(r'title="(\d+)"', html)]
    assert shown == [*range(SHOWN_FIRST), *range(count - SHOWN_LAST, count)]
    assert ("not shown" in html) == (extra > 0)
    if extra:
        assert f"… {extra:,} token{'s' * (extra != 1)} not shown …" in html
    assert f"{count:,} tokens:" in html


def test_the_prompt_as_text() -> None:
    assert raw_text(SMALL) == "<|role|>a & b\n"


def test_an_unchanged_prompt_has_a_note() -> None:
    assert "nothing changed" in difference_html(SMALL, SMALL)


def test_a_change_within() -> None:
    html = difference_html(numbered([*range(50)]), numbered([*range(20), 90, 91, *range(23, 50)]))
    assert words(html).startswith("Since the last look: 3 tokens removed, 2 added.")
    assert tagged(html, "del") == ["t20 t21 t22 "]
    assert tagged(html, "ins") == ["t90 t91 "]
    assert "… 12 tokens unchanged …t12 " in words(html)
    assert "t30 … 19 tokens unchanged …" in words(html)


def test_what_is_only_added_or_only_removed() -> None:
    long, short = numbered([1, 2, 3, 4]), numbered([1, 4])
    assert (tagged(difference_html(short, long), "ins"), tagged(difference_html(short, long), "del")) == (
        ["t2 t3 "],
        [],
    )
    assert (tagged(difference_html(long, short), "ins"), tagged(difference_html(long, short), "del")) == (
        [],
        ["t2 t3 "],
    )


def test_two_changes_stay_apart() -> None:
    html = difference_html(numbered([1, 2, 3, 4, 5]), numbered([9, 2, 3, 4, 8]))
    assert tagged(html, "del") == ["t1 ", "t5 "]
    assert tagged(html, "ins") == ["t9 ", "t8 "]


def test_equal_tokens_of_repeated_prompts() -> None:
    html = difference_html(numbered([7, 7, 7]), numbered([7, 7, 7, 7]))
    assert tagged(html, "ins") == ["t7 "]


def test_a_large_change_is_bounded_in_time_and_length() -> None:
    html = difference_html(numbered([1, *range(100_000)]), numbered([1, *range(100_001, 150_000)]))
    assert "100,000 tokens removed, 49,999 added" in words(html)
    assert "… 99,600 tokens more …" in words(html)
    assert html.count("<b ") < 1000
    # The worst for difflib: few kinds of tokens, in another order.
    one = [number % 3 for number in range(MAX_DIFFED)]
    other = [(number * number) % 3 + 1 for number in range(MAX_DIFFED)]
    start = time.perf_counter()
    difference_html(numbered(one), numbered(other))
    assert time.perf_counter() - start < 3


def test_the_browser_keeps_what_a_difference_needs() -> None:
    kept = unpack(pack(SMALL))
    assert kept is not None
    assert "nothing changed" in difference_html(kept, SMALL)
    assert pack(numbered([1] * (MAX_KEPT + 1))) == []


@pytest.mark.parametrize(
    "value", [None, [], {}, 3, "x", [["user"]], [["evil", [[1, "a"]]]], [["user", [["x", "a"]]]], [[[], []]]]
)
def test_what_the_browser_sends_back_may_be_anything(value: Any) -> None:
    assert unpack(value) is None
