"""Marks come through templates, and tell what somebody wrote from what the template did."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granite_demo.prompts.taint import ESCAPE, Marker, Stretch

MARKER = Marker(["<a>", "<ab>", "</a>"])


def texts(pieces: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pieces), max_size=12).map("".join)


WRITTEN = texts(["<a>", "<ab>", "x", " ", ESCAPE, "0", "(", ")", ".", "<", "\\u007f", "u007f", "x7f", "\\", "-"])


@given(first=WRITTEN, second=WRITTEN)
def test_what_was_marked_is_read_again(first: str, second: str) -> None:
    marked = f"[{MARKER.mark('user', first)}|{MARKER.mark('tool', second)}]"
    stretches = [("template", "["), ("user", first), ("template", "|"), ("tool", second), ("template", "]")]
    read = list(MARKER.read(marked))
    wanted = [Stretch(origin, text) for origin, text in stretches if text]  # type: ignore[arg-type]
    assert [(stretch.origin, stretch.text) for stretch in read if stretch.origin != "template"] == [
        (stretch.origin, stretch.text) for stretch in wanted if stretch.origin != "template"
    ]
    assert "".join(stretch.text for stretch in read) == f"[{first}|{second}]"


@given(text=WRITTEN)
def test_json_with_escapes_keeps_the_marks(text: str) -> None:
    dumped = json.dumps({"key": MARKER.mark("document", text)}, ensure_ascii=True)
    inner = [json.loads(f'"{stretch.text}"') for stretch in MARKER.read(dumped) if stretch.origin == "document"]
    assert inner == ([text] if text else [])


@given(text=WRITTEN)
def test_pythons_own_way_to_write_lists_keeps_the_marks(text: str) -> None:
    inner = [stretch.text for stretch in MARKER.read(repr([MARKER.mark("tool", text)])) if stretch.origin == "tool"]
    assert inner == ([text.replace("\\", "\\\\")] if text else [])


def test_marks_may_stay_inside_of_the_white_space() -> None:
    marked = MARKER.mark("user", " \n hi there\t", inside=True)
    assert marked.startswith(" \n ")
    assert marked.endswith("\t")
    assert Stretch("user", "hi there") in MARKER.read(marked)
    assert MARKER.mark("user", " \n", inside=True) == " \n"


def test_the_keys_of_objects_are_left_alone_unless_they_must_not() -> None:
    assert MARKER.mark_key("tool", "name") == "name"
    assert list(MARKER.read(MARKER.mark_key("tool", "<a>"))) == [Stretch("tool", "<a>")]
    assert list(MARKER.read(MARKER.mark_key("tool", ESCAPE))) == [Stretch("tool", ESCAPE)]


@pytest.mark.parametrize("split", ["<a>", "x"])
def test_a_torn_text_is_the_templates_but_its_control_tokens_are_not(split: str) -> None:
    marked = MARKER.mark("user", f"one <ab> {split} three <ab>")
    for half in marked.split(split):
        read = list(MARKER.read(f"<a>{half}</a>"))
        assert all(stretch.origin == "template" for stretch in read)
        assert read[0].text.startswith("<a>")
        assert [stretch.text for stretch in read if stretch.foreign] == ["<ab>"]
        assert ESCAPE not in "".join(stretch.text for stretch in read)


def test_text_is_cut_until_no_control_token_is_left() -> None:
    assert MARKER.cut("plain") == ["plain"]
    assert MARKER.cut("a<a><ab>b") == ["a<", "a><", "ab>b"]
    assert MARKER.cut("") == [""]


def test_without_control_tokens_nothing_is_cut() -> None:
    marker = Marker([])
    assert marker.cut("<a>") == ["<a>"]
    assert list(marker.read(marker.mark("user", "<a>"))) == [Stretch("user", "<a>")]
