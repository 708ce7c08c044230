from typing import Any

import pytest

from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import Controls, Document, Message, ToolCall, ToolSpec, canonical_json, scrub


def test_lone_surrogates_become_replacement_characters() -> None:
    assert scrub("a\ud800b\udfff") == "a\ufffdb\ufffd"
    assert scrub("plain \u00e9 \U0001f600") == "plain \u00e9 \U0001f600"
    assert Message("user", "\udc00!").content == "\ufffd!"
    assert Message("assistant", "", thinking="\ud800").thinking == "\ufffd"
    assert Document("\ud800", "\udfff") == Document("\ufffd", "\ufffd")
    assert ToolCall("\ud800", "\udfff") == ToolCall("\ufffd", "\ufffd")


@pytest.mark.parametrize("role", ["", "User", None, 1])
def test_other_roles_raise(role: Any) -> None:
    with pytest.raises(InvalidRequestError, match="one of system, user, assistant, tool, not "):
        Message(role, "hi")


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_the_roles_are_accepted(role: Any) -> None:
    assert Message(role, "hi").role == role


@pytest.mark.parametrize("content", [None, 5, ["hi"], b"hi"])
def test_the_content_must_be_a_text(content: Any) -> None:
    with pytest.raises(InvalidRequestError, match="content of a message must be a text"):
        Message("user", content)


@pytest.mark.parametrize("more", [{"thinking": "hm"}, {"tool_calls": (ToolCall("add", "{}"),)}])
def test_only_an_assistant_can_have_thinking_and_calls(more: Any) -> None:
    assert Message("assistant", "", **more).role == "assistant"
    with pytest.raises(InvalidRequestError, match="Only a message of the assistant"):
        Message("user", "hi", **more)


@pytest.mark.parametrize(
    "wrong", [{"thinking": "deep"}, {"length": "medium"}, {"originality": 1}, {"citations": 1}, {"hallucinations": "x"}]
)
def test_a_switch_with_another_value_raises(wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"{next(iter(wrong))} must be"):
        Controls(**wrong)


def test_a_tool_in_the_format_of_openai() -> None:
    tool = ToolSpec("add", "Adds.", {"type": "object"})
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    assert tool.as_function() == {"type": "function", "function": function}


def test_canonical_json_does_not_depend_on_order() -> None:
    assert canonical_json({"b": 1, "a": "\u00e9"}) == canonical_json({"a": "\u00e9", "b": 1}) == '{"a":"\u00e9","b":1}'
