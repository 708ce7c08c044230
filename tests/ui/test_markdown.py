"""Nothing that is written can begin markup, and without the invisible mark it is what was written."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granite_demo.ui.markdown import MARK, plain

NOTE = 'said.<sup><a href="#note-ab12-1">[1]</a></sup>'
OPENING = re.compile(r"<[A-Za-z/!?]|!\[")
KEPT = re.compile(r'<https?://[^\s<>"\'=`]+>|<sup><a href="#note-[\w-]+">\[\d+\]</a></sup>')
pieces = st.sampled_from(
    [
        "<div style='position:fixed'>",
        "</b>",
        "<!-- x -->",
        "<?x?>",
        "<![CDATA[",
        "![x](/logout)",
        "![x][y]",
        "`",
        "```\n",
        "~~~",
        "    ",
        "\t",
        "> ",
        "- ",
        "1. ",
        "| a |",
        "\\",
        "$$",
        "\\(",
        "\n",
        "\n\n",
        "\r",
        "\u2028",
        "\x0b",
        "<",
        "!",
        "[",
        "a",
        "<https://x.y/z>",
        "<https://x/style='a'>",
        NOTE,
        "[y]: /logout\n",
    ]
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is <b>x</b>?", "What is <~b>x<~/b>?"),
        ("vector<int> and a<b, 1 < 2, <3", "vector<~int> and a<~b, 1 < 2, <3"),
        ("`a<b` ![x](/logout) and !a[0]", "`a<~b` !~[x](/logout) and !a[0]"),
        ("see <https://example.org/a> <b>", "see <https://example.org/a> <~b>"),
        ("<https://x/style=a>", "<~https://x/style=a>"),
        (NOTE, NOTE),
        ('<sup><a href="javascript:x">[1]</a></sup>', '<~sup><~a href="javascript:x">[1]<~/a><~/sup>'),
    ],
)
def test_no_markup_but_our_own(text: str, expected: str) -> None:
    assert plain(text) == expected.replace("~", MARK)


@given(st.lists(pieces, max_size=40).map("".join))
def test_no_text_begins_markup_wherever_it_stands(text: str) -> None:
    shown = plain(text)
    # A space stands for each piece that is kept: what is before and after it does not join.
    assert not OPENING.search(KEPT.sub(" ", shown))
    assert shown.replace(MARK, "") == text


@pytest.mark.parametrize("text", ["", "no markup", "1 > 0", "> quote", "a < b"])
def test_other_text_stays(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize("piece", ["<", "<a", "`<", "<https://", "<sup><a", "!["])
def test_it_is_linear(piece: str) -> None:
    def seconds(count: int) -> float:
        start = time.process_time()
        plain(piece * count)
        return time.process_time() - start

    seconds(1000)
    assert seconds(40_000) < 40 * max(seconds(4_000), 0.002)
