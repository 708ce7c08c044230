"""The Settings tab's values to sampling parameters, and back from the browser."""

from dataclasses import replace
from typing import Any

import gradio as gr
import pytest

from granite_demo.errors import InvalidRequestError
from granite_demo.types.sampling_params import SamplingParams
from granite_demo.ui.settings import DEFAULTS, own_values, shown_values, to_sampling
from tests.fakes import READY


def stop(text: Any) -> tuple[str, ...]:
    return to_sampling(*DEFAULTS[:-1], text).stop


def test_the_defaults_are_greedy_and_limited() -> None:
    assert to_sampling(*DEFAULTS) == SamplingParams(max_tokens=512)


def test_the_values_are_in_the_order_of_the_components() -> None:
    assert to_sampling(0.7, 0.9, 40.0, 0.05, 1.1, 100.0, 7.0, "END") == SamplingParams(
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.1,
        max_tokens=100,
        seed=7,
        stop=("END",),
    )


def test_a_value_out_of_range_has_an_error_with_its_name() -> None:
    with pytest.raises(InvalidRequestError, match="Temperature must be between"):
        to_sampling(3, *DEFAULTS[1:])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        (None, ()),
        ("END", ("END",)),
        ("one\n\ntwo\r\n", ("one", "two")),
        (r"\n\n", ("\n\n",)),
        (r"a\tb", ("a\tb",)),
        (r"\u00e9", ("é",)),
        (r"\\n", (r"\n",)),
        ('"', ('"',)),
        ('say "stop"', ('say "stop"',)),
        (r"\ud800", ("\ufffd",)),
        ("  kept  ", ("  kept  ",)),
        ("日本\nété", ("日本", "été")),
    ],
)
def test_stop_strings_are_lines_with_escapes(text: str | None, expected: tuple[str, ...]) -> None:
    assert stop(text) == expected


@pytest.mark.parametrize("line", ["\\", "\\x", "a\\", "\\u12"])
def test_an_invalid_escape_has_an_error(line: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        stop(f"fine\n{line}")
    assert f"{line!r} has a broken escape" in caught.value.user_text
    assert "backslash as \\\\" in caught.value.user_text


@pytest.mark.parametrize(("line", "expected"), [("\tdef", "\tdef"), (r"\"", '"')], ids=["tab", "escaped quote"])
def test_no_escape_is_broken_here(line: str, expected: str) -> None:
    assert stop(line) == (expected,)


def test_too_many_stop_strings_have_an_error() -> None:
    with pytest.raises(InvalidRequestError, match="At most 4 stop strings"):
        stop("a\nb\nc\nd\ne")


def test_what_the_makers_of_the_model_use_is_shown_and_can_be_taken() -> None:
    own = SamplingParams(temperature=1.0, top_p=0.95, max_tokens=8192)
    words, button = shown_values(replace(READY, sampling=own))
    assert "Recommended for Fake model: temperature 1, top-p 0.95, up to 8,192 new tokens." in words
    assert button.visible
    *values, seed, stop = own_values(own)
    assert to_sampling(*(*values, "", "")) == own
    assert seed == stop == gr.skip()


def test_nothing_is_shown_of_a_model_whose_makers_name_nothing() -> None:
    words, button = shown_values(READY)
    assert not words
    assert not button.visible
