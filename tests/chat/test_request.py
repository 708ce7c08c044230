"""Tests for the request for the next answer of a conversation."""

import pytest

from granite_demo.chat import conversation as conversations
from granite_demo.chat.request import build_request
from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import Controls, Document, Message
from granite_demo.types.sampling_params import SamplingParams

GREEDY = SamplingParams(max_tokens=5)


def test_the_request_has_all_values_of_the_conversation() -> None:
    conversation = conversations.start(
        system=" Be brief. ",
        documents=(Document(title="a.txt", text="Facts."),),
        tools='[{"name": "clock", "description": "", "parameters": {"type": "object"}}]',
        controls=Controls(thinking="low", citations=True),
        overflow="drop",
    )
    request = build_request(conversation, GREEDY, "Why?")
    assert request.messages == (Message("system", "Be brief."), Message("user", "Why?"))
    assert request.documents == (Document("a.txt", "Facts."),)
    assert [tool.name for tool in request.tools] == ["clock"]
    assert request.controls == Controls(thinking="low", citations=True)
    assert (request.overflow, request.sampling) == ("drop", GREEDY)


def test_without_text_the_last_turn_is_the_question() -> None:
    conversation = conversations.add(conversations.start(), "user", content="Hello")
    assert build_request(conversation, GREEDY).messages == (Message("user", "Hello"),)


def test_a_conversation_without_a_question_raises() -> None:
    with pytest.raises(InvalidRequestError):
        build_request(conversations.start(), GREEDY, "  ")
