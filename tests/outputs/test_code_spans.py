"""Code in Markdown text, wherever the text is cut."""

import pytest

from granite_demo.outputs.code_spans import CodeSpans

INSIDE = [
    "`",
    "``a`",
    "A `b",
    "```\n",
    "```py\na\n",
    "  ~~~~\n~~~\n",
    "```\n``\n",
    "````\n```\n",
    "```\n``` a\n",
    "```a",
]
OUTSIDE = [
    "",
    "A",
    "`a`",
    "``a` ``",
    "`a\n",
    "```\na\n```",
    "```\na\n```\n",
    "```a```",
    "~~~\n~~~ \n",
    "a ```\nb",
    "~~",
]


@pytest.mark.parametrize(("text", "inside"), [*((text, True) for text in INSIDE), *((text, False) for text in OUTSIDE)])
def test_what_is_code(text: str, inside: bool) -> None:
    for size in (1, 2, len(text) + 1):
        spans = CodeSpans()
        for start in range(0, len(text), size):
            spans.feed(text[start : start + size])
        assert spans.inside == inside


@pytest.mark.parametrize(("text", "starts"), [("", True), ("a\n", True), ("a\n \t", True), ("a", False), ("`", False)])
def test_the_start_of_a_line(text: str, starts: bool) -> None:
    spans = CodeSpans()
    spans.feed(text)
    assert spans.at_line_start == starts
