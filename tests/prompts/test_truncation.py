"""Which turns of a conversation are left out if it does not fit."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granite_demo.errors import ContextOverflowError
from granite_demo.prompts.truncation import fit, reserve
from granite_demo.types.messages import Message, ToolCall
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams

CALL = (ToolCall("look", "{}"),)
SYSTEM = Message("system", "s")


def count(request: GenerationRequest) -> list[int]:
    """Return a prompt with one token for each character and one for each message."""
    return [0] * (len(request.prompt or "") + sum(len(message.content) + 1 for message in request.messages))


def chat(*messages: Message, overflow: Any = "drop", max_tokens: int | None = 2) -> GenerationRequest:
    return GenerationRequest(messages, overflow=overflow, sampling=SamplingParams(max_tokens=max_tokens))


def exchanges(number: int, size: int = 4) -> list[Message]:
    """Return questions and answers of ``size`` tokens each."""
    return [
        message
        for index in range(number)
        for message in (Message("user", f"{index % 10}" * (size - 1)), Message("assistant", "a" * (size - 1)))
    ]


LAST = Message("user", "end")


def test_a_request_that_fits_stays_complete() -> None:
    request = chat(SYSTEM, *exchanges(2), LAST)
    fitted = fit(request, count, 24)  # 22 for the prompt and 2 for the answer
    assert (fitted.request, fitted.dropped) == (request, 0)
    assert fitted.prompt_ids == count(request)


@pytest.mark.parametrize(("context", "dropped"), [(24, 0), (23, 2), (16, 2), (15, 4), (8, 4), (7, 4)])
def test_the_oldest_exchanges_go_first(context: int, dropped: int) -> None:
    request = chat(SYSTEM, *exchanges(2), LAST)
    fitted = fit(request, count, context)
    assert fitted.dropped == dropped
    assert fitted.request.messages == (SYSTEM, *exchanges(2)[dropped:], LAST)
    assert fitted.prompt_ids == count(fitted.request)
    assert fitted.request.sampling == request.sampling


def test_the_last_turn_must_leave_room_for_a_token() -> None:
    with pytest.raises(ContextOverflowError) as caught:
        fit(chat(SYSTEM, *exchanges(2), LAST), count, 6)
    assert (caught.value.prompt_tokens, caught.value.context_length) == (6, 6)
    with pytest.raises(ContextOverflowError):
        fit(chat(LAST), count, 4)
    assert fit(chat(LAST), count, 5).dropped == 0


def test_the_tool_messages_after_the_last_question_stay() -> None:
    tail = (LAST, Message("assistant", "", tool_calls=CALL), Message("tool", "42"))
    fitted = fit(chat(*exchanges(3), *tail), count, 12)
    assert fitted.request.messages == tail
    assert fitted.dropped == 6


def test_an_exchange_goes_with_all_its_messages() -> None:
    first = [Message("user", "one"), Message("assistant", "", tool_calls=CALL), Message("tool", "4"), *exchanges(1)[1:]]
    fitted = fit(chat(*first, LAST), count, 14)
    assert fitted.request.messages == (LAST,)
    assert fitted.dropped == 4


def test_a_greeting_goes_with_the_first_exchange() -> None:
    fitted = fit(chat(Message("assistant", "Welcome!"), *exchanges(1), LAST), count, 15)
    assert fitted.request.messages == (*exchanges(1), LAST)


def test_nothing_is_left_out_if_overflow_is_refused_or_the_text_is_raw() -> None:
    request = chat(*exchanges(3), LAST, overflow="refuse")
    assert fit(request, count, 5).request == request
    raw = GenerationRequest(prompt="x" * 100, overflow="drop")
    assert len(fit(raw, count, 50).prompt_ids) == 100


def test_few_renderings_are_enough() -> None:
    calls = 0

    def counted(request: GenerationRequest) -> list[int]:
        nonlocal calls
        calls += 1
        return count(request)

    fitted = fit(chat(*exchanges(1000), LAST), counted, 1000)
    assert 900 < len(fitted.prompt_ids) <= 998
    assert calls <= 13


@given(number=st.integers(0, 12), size=st.integers(2, 6), context=st.integers(12, 80))
def test_no_more_is_left_out_than_necessary(number: int, size: int, context: int) -> None:
    request = chat(SYSTEM, *exchanges(number, size), LAST)
    fitted = fit(request, count, context)
    assert len(fitted.prompt_ids) <= context - 2
    if fitted.dropped:
        more = chat(SYSTEM, *exchanges(number, size)[fitted.dropped - 2 :], LAST)
        assert len(count(more)) > context - 2


@pytest.mark.parametrize(
    ("max_tokens", "context", "kept"), [(None, 100, 25), (10, 100, 10), (60, 100, 50), (1, 100, 1), (None, 3, 0)]
)
def test_room_for_the_answer(max_tokens: int | None, context: int, kept: int) -> None:
    assert reserve(SamplingParams(max_tokens=max_tokens), context) == kept
