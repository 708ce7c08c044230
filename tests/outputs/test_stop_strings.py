"""Stop strings: the result does not depend on how the stream is cut."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from granite_demo.outputs.stop_strings import StopStrings

# The alphabet is small, so that stop strings, overlaps and near matches occur.
TEXTS = st.text("ab<é", max_size=24)
STOPS = st.lists(st.text("ab<é", min_size=1, max_size=4), max_size=4).map(tuple)
CUTS = st.lists(st.integers(0, 24), max_size=8)


def feed_all(stop: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    parser = StopStrings(stop)
    shown = "".join([parser.feed(piece) for piece in pieces] + [parser.flush()])
    return shown, parser.hit


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cuts), len(text)]
    return [text[start:end] for start, end in zip(edges, edges[1:], strict=False)]


def before_the_first(text: str, stop: tuple[str, ...]) -> str:
    return text[: min((text.index(word) for word in stop if word in text), default=len(text))]


@given(TEXTS, STOPS, CUTS)
@example("abbb", ("abbb", "bb"), [3])
@example("abb", ("abbb", "bb"), [])
def test_any_cutting_shows_the_text_before_the_first_stop_string(
    text: str, stop: tuple[str, ...], cuts: list[int]
) -> None:
    expected = before_the_first(text, stop)
    assert feed_all(stop, cut(text, cuts)) == (expected, expected != text)


@given(TEXTS)
def test_every_position_is_a_place_to_cut(text: str) -> None:
    stop = ("<ab", "ba")
    expected = before_the_first(text, stop)
    for position in range(len(text) + 1):
        assert feed_all(stop, [text[:position], text[position:]])[0] == expected


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    parser = StopStrings(("END", "\n\n"))
    assert parser.feed("The E") == "The "
    assert parser.feed("N") == ""
    assert parser.feed("ergy\n") == "ENergy"
    assert parser.feed("EN") == "\n"
    assert not parser.hit
    assert parser.flush() == "EN"
    assert parser.flush() == ""


def test_the_longest_beginning_is_held_back() -> None:
    parser = StopStrings(("b", "aab"))
    assert parser.feed("aaa") == "a"
    assert parser.feed("b") == ""
    assert parser.hit


def test_a_complete_stop_string_does_not_wait_for_a_longer_one() -> None:
    parser = StopStrings(("abc", "ab"))
    assert parser.feed("xab") == "x"
    assert parser.hit


def test_nothing_follows_a_hit() -> None:
    parser = StopStrings(("END",))
    assert parser.feed("one END two") == "one "
    assert parser.hit
    assert parser.feed(" three") == ""
    assert parser.flush() == ""


@pytest.mark.parametrize("pieces", [["any", " text"], [""], []])
def test_without_stop_strings_text_passes_at_once(pieces: list[str]) -> None:
    parser = StopStrings(())
    assert [parser.feed(piece) for piece in pieces] == pieces
    assert (parser.flush(), parser.hit) == ("", False)
