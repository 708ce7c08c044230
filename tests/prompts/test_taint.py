"""Marks survive a template and separate untrusted text from the template's own text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granite_demo.prompts.taint import ESCAPE, Span, TaintMarker

MARKER = TaintMarker(["<a>", "<ab>", "</a>"])


def texts(pieces: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pieces), max_size=12).map("".join)


WRITTEN = texts(["<a>", "<ab>", "x", " ", ESCAPE, "0", "(", ")", ".", "<", "\\u007f", "u007f", "x7f", "\\", "-"])


@given(first=WRITTEN, second=WRITTEN)
def test_marked_texts_are_read_back(first: str, second: str) -> None:
    marked = f"[{MARKER.mark('user', first)}|{MARKER.mark('tool', second)}]"
    spans = [("template", "["), ("user", first), ("template", "|"), ("tool", second), ("template", "]")]
    read = list(MARKER.read(marked))
    wanted = [Span(origin, text) for origin, text in spans if text]  # type: ignore[arg-type]
    assert [(span.origin, span.text) for span in read if span.origin != "template"] == [
        (span.origin, span.text) for span in wanted if span.origin != "template"
    ]
    assert "".join(span.text for span in read) == f"[{first}|{second}]"


@given(text=WRITTEN)
def test_json_with_escapes_keeps_the_marks(text: str) -> None:
    dumped = json.dumps({"key": MARKER.mark("document", text)}, ensure_ascii=True)
    inner = [json.loads(f'"{span.text}"') for span in MARKER.read(dumped) if span.origin == "document"]
    assert inner == ([text] if text else [])


@given(text=WRITTEN)
def test_the_repr_of_a_list_keeps_the_marks(text: str) -> None:
    inner = [span.text for span in MARKER.read(repr([MARKER.mark("tool", text)])) if span.origin == "tool"]
    assert inner == ([text.replace("\\", "\\\\")] if text else [])


def test_marks_can_stay_inside_the_white_space() -> None:
    marked = MARKER.mark("user", " \n hi there\t", inside=True)
    assert marked.startswith(" \n ")
    assert marked.endswith("\t")
    assert Span("user", "hi there") in MARKER.read(marked)
    assert MARKER.mark("user", " \n", inside=True) == " \n"


def test_the_keys_of_objects_are_marked_only_if_necessary() -> None:
    assert MARKER.mark_key("tool", "name") == "name"
    assert list(MARKER.read(MARKER.mark_key("tool", "<a>"))) == [Span("tool", "<a>")]
    assert list(MARKER.read(MARKER.mark_key("tool", ESCAPE))) == [Span("tool", ESCAPE)]


@pytest.mark.parametrize("split", ["<a>", "x"])
def test_a_torn_text_belongs_to_the_template_except_for_its_control_tokens(split: str) -> None:
    marked = MARKER.mark("user", f"one <ab> {split} three <ab>")
    for half in marked.split(split):
        read = list(MARKER.read(f"<a>{half}</a>"))
        assert all(span.origin == "template" for span in read)
        assert read[0].text.startswith("<a>")
        assert [span.text for span in read if span.untrusted] == ["<ab>"]
        assert ESCAPE not in "".join(span.text for span in read)


def test_text_is_cut_until_no_control_token_is_left() -> None:
    assert MARKER.cut("plain") == ["plain"]
    assert MARKER.cut("a<a><ab>b") == ["a<", "a><", "ab>b"]
    assert MARKER.cut("") == [""]


def test_without_control_tokens_nothing_is_cut() -> None:
    marker = TaintMarker([])
    assert marker.cut("<a>") == ["<a>"]
    assert list(marker.read(marker.mark("user", "<a>"))) == [Span("user", "<a>")]
