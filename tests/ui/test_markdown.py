"""Every character that is written is shown."""

import time

import pytest

from granite_demo.ui.markdown import plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is <b>x</b>?", "What is &lt;b>x&lt;/b>?"),
        ("vector<int> and a<b", "vector&lt;int> and a&lt;b"),
        ("<div style='position:fixed'>", "&lt;div style='position:fixed'>"),
        ("`a<b` then a<b", "`a<b` then a&lt;b"),
        ("``a ` <b>`` <b>", "``a ` <b>`` &lt;b>"),
        ("open ` and <b>", "open ` and &lt;b>"),
        ("```\n<b>\n```\n<b>", "```\n<b>\n```\n&lt;b>"),
        (r"\(a<b\) <b> \[c<d\] $$e<f$$", r"\(a<b\) &lt;b> \[c<d\] $$e<f$$"),
        ("see <https://example.org/a?b=1> <b>", "see <https://example.org/a?b=1> &lt;b>"),
        ('said.<sup><a href="#note-ab12-1">[1]</a></sup>', 'said.<sup><a href="#note-ab12-1">[1]</a></sup>'),
        ('<sup><a href="javascript:x">[1]</a></sup>', '&lt;sup>&lt;a href="javascript:x">[1]&lt;/a>&lt;/sup>'),
    ],
)
def test_no_markup_but_our_own(text: str, expected: str) -> None:
    assert plain(text) == expected


@pytest.mark.parametrize("text", ["", "no markup", "1 > 0", "> quote"])
def test_other_text_stays(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize("piece", ["<", "`<", "\\(<", "$$<", "``` <", "`", "<https://"])
def test_it_is_linear(piece: str) -> None:
    def seconds(count: int) -> float:
        start = time.process_time()
        plain(piece * count)
        return time.process_time() - start

    seconds(1000)
    assert seconds(40_000) < 40 * max(seconds(4_000), 0.002)
