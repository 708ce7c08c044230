"""Tests that values are checked on construction, and that errors name the field."""

from typing import Any

import pytest

from granite_demo.errors import InvalidRequestError
from granite_demo.types.events import Timings
from granite_demo.types.messages import Message, ToolCall
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import MAX_ALTERNATIVES, MAX_SEED, SamplingParams

NAMES = {
    "temperature": "Temperature",
    "top_p": "Top-p",
    "top_k": "Top-k",
    "repetition_penalty": "Repetition penalty",
    "max_tokens": "Max new tokens",
    "seed": "Seed",
    "min_p": "Min-p",
    "logprobs": "Logprobs",
}
WHOLE = ("top_k", "max_tokens", "seed", "logprobs")
NAN, INF = float("nan"), float("inf")


def sampling(**values: Any) -> SamplingParams:
    return SamplingParams(**values)


def test_the_defaults_are_greedy_with_everything_off() -> None:
    assert sampling() == SamplingParams(0.0, 1.0, 0, 1.0, None, None, (), 0.0, None)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("temperature", 0, 2),
        ("top_p", 0.001, 1),
        ("top_k", 0, 1_000_000),
        ("repetition_penalty", 0.1, 10),
        ("max_tokens", 1, 1_000_000),
        ("seed", 0, MAX_SEED),
        ("min_p", 0, 1),
        ("logprobs", 0, MAX_ALTERNATIVES),
    ],
)
def test_both_ends_of_a_range_are_allowed(name: str, low: Any, high: Any) -> None:
    assert getattr(sampling(**{name: low}), name) == low
    assert getattr(sampling(**{name: high}), name) == high


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.01),
        ("temperature", 2.01),
        ("top_p", -0.01),
        ("top_p", 1.01),
        ("top_k", -1),
        ("top_k", 1_000_001),
        ("repetition_penalty", 0.09),
        ("repetition_penalty", 10.1),
        ("max_tokens", 0),
        ("max_tokens", 1_000_001),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("seed", 2.0**63),
        ("min_p", -0.01),
        ("min_p", 1.01),
        ("logprobs", -1),
        ("logprobs", MAX_ALTERNATIVES + 1),
    ],
)
def test_values_out_of_range_raise_with_the_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{NAMES[name]} must be between "):
        sampling(**{name: value})


def test_top_p_zero_points_to_greedy() -> None:
    with pytest.raises(InvalidRequestError, match="temperature 0"):
        sampling(top_p=0)


@pytest.mark.parametrize("value", [True, False, "1", [1], NAN, INF, -INF], ids=repr)
@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_is_not_a_number_raises_with_the_name(name: str, value: Any) -> None:
    kind = "a whole number" if name in WHOLE else "a number"
    with pytest.raises(InvalidRequestError, match=f"^{NAMES[name]} must be {kind}, not "):
        sampling(**{name: value})


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"])
def test_none_is_not_a_number(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{NAMES[name]} must be "):
        sampling(**{name: None})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["huge", "huge negative"])
def test_numbers_beyond_floats_raise(name: str, value: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{NAMES[name]} must be "):
        sampling(**{name: value})


@pytest.mark.parametrize("name", WHOLE)
def test_integers_can_be_floats(name: str) -> None:
    value = getattr(sampling(**{name: 1.0}), name)
    assert value == 1
    assert type(value) is int
    with pytest.raises(InvalidRequestError, match=f"^{NAMES[name]} must be a whole number, not 1.5"):
        sampling(**{name: 1.5})


def test_floats_can_be_integers() -> None:
    params = sampling(temperature=1, top_p=1, repetition_penalty=2)
    assert [type(value) for value in (params.temperature, params.top_p, params.repetition_penalty)] == [float] * 3


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("END", ("END",)), (["a", "b"], ("a", "b")), (("a",) * 4, ("a",) * 4), ("x" * 64, ("x" * 64,)), ([], ())],
)
def test_stop_is_one_string_or_a_sequence(stop: Any, expected: tuple[str, ...]) -> None:
    assert sampling(stop=stop).stop == expected


def test_a_fifth_stop_string_raises() -> None:
    with pytest.raises(InvalidRequestError, match="At most 4 stop strings are allowed, not 5"):
        sampling(stop=["a"] * 5)


@pytest.mark.parametrize("text", ["", "x" * 65, 5, None], ids=["empty", "65 characters", "number", "none"])
def test_a_stop_string_has_1_to_64_characters(text: Any) -> None:
    with pytest.raises(InvalidRequestError, match="1 to 64 characters"):
        sampling(stop=["ok", text])


@pytest.mark.parametrize("stop", [None, 5, 0.5])
def test_stop_of_another_type_raises(stop: Any) -> None:
    with pytest.raises(InvalidRequestError):
        sampling(stop=stop)


def test_lone_surrogates_become_replacement_characters() -> None:
    assert sampling(stop="\ud800").stop == ("\ufffd",)
    assert GenerationRequest(prompt="\ud800?").prompt == "\ufffd?"


USER, SYSTEM, ASSISTANT = Message("user", "hi"), Message("system", "Be brief."), Message("assistant", "Hello.")


def test_a_request_is_a_conversation_or_a_text() -> None:
    assert GenerationRequest((SYSTEM, USER, ASSISTANT, USER)).prompt is None
    assert GenerationRequest(prompt="Once").messages == ()
    for values in ({}, {"messages": (USER,), "prompt": "Once"}):
        with pytest.raises(InvalidRequestError, match="either messages or a prompt"):
            GenerationRequest(**values)  # type: ignore[arg-type]


def test_an_empty_prompt_raises() -> None:
    with pytest.raises(InvalidRequestError, match="prompt is empty"):
        GenerationRequest(prompt="")


@pytest.mark.parametrize(
    "last", [Message("assistant", " "), Message("assistant", "So.", tool_calls=(ToolCall("f", "{}"),))]
)
def test_an_invalid_last_message_raises(last: Message) -> None:
    with pytest.raises(InvalidRequestError, match="The last message is from the assistant"):
        GenerationRequest((USER, last))


def test_decode_rate_counts_the_tokens_after_the_first() -> None:
    timings = Timings(ttft=0.5, total=2.5)
    assert timings.decode_rate(11) == 5.0
    assert timings.decode_rate(2) == 0.5
    assert timings.decode_rate(1) is None
    assert timings.decode_rate(0) is None
    assert Timings(ttft=0.5, total=0.5).decode_rate(11) is None


def test_the_last_message_can_be_from_a_tool() -> None:
    request = GenerationRequest((USER, ASSISTANT, Message("tool", "4", name="add")))
    assert request.messages[-1].content == "4"


def test_an_unknown_overflow_raises() -> None:
    with pytest.raises(InvalidRequestError, match="refuse or drop"):
        GenerationRequest((USER,), overflow="cut")  # type: ignore[arg-type]
