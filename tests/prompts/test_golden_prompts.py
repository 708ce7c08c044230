"""The prompts equal those that the original templates of Granite produce from arguments written by hand."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from granite_demo.prompts import jinja_chat
from granite_demo.prompts.render import render_chat, render_parts, render_text
from granite_demo.server.openai.chat import requests_of
from granite_demo.server.openai.protocol import ChatRequest
from granite_demo.types.messages import Controls, Document, Message, Switches, ToolCall, ToolSpec
from granite_demo.types.model_status import ModelStatus
from granite_demo.types.requests import GenerationRequest
from tests.bytetokens import byte_tokenizer, real_template

READY = ModelStatus(stage="ready", model="fake", switches=Switches(tools=True, documents=True))


class Frozen(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "Frozen":
        return cls(2025, 4, 9, 12, 0, 0, tzinfo=tz)


@dataclass(frozen=True)
class Row:
    """A request and the corresponding arguments of the template, written by hand."""

    request: GenerationRequest
    turns: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    granite_3: dict[str, Any] = field(default_factory=dict)
    """Arguments that only the templates of Granite 3 read."""


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASK = Message("user", "What is the weather in Zürich?")
ASKED = turn("user", "What is the weather in Zürich?")
BRIEF, BRIEFED = Message("system", "Be brief."), turn("system", "Be brief.")
WEATHER = ToolSpec(
    "weather",
    "Tells the weather, in °C.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
WEATHER_TOLD = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather, in °C.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = ToolSpec("time", "", {})
TIME_TOLD = {"type": "function", "function": {"name": "time", "description": "", "parameters": {}}}
RAIN, SUN = Document("Rain.txt", 'It "rains".\nOften. 雨'), Document("", "Sun.")
RAIN_TOLD = {"doc_id": 1, "title": "Rain.txt", "text": 'It "rains".\nOften. 雨'}
SUN_TOLD = {"doc_id": 2, "title": "", "text": "Sun."}
CALL = ToolCall("weather", '{"city": "Zürich", "days": 2, "deep": {"list": [1, "two", null]}}')
CALLED = {
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2, "deep": {"list": [1, "two", None]}}},
}
BAD = ToolCall("weather", '{"city": ', error="It is not JSON.")
BAD_CALLED = {"type": "function", "function": {"name": "weather", "arguments": '{"city": '}}


def request(*messages: Message, **given: Any) -> GenerationRequest:
    return GenerationRequest(messages, **given)


def controlled(given: dict[str, Any], *messages: Message, documents: bool = True, **controls: Any) -> Row:
    return Row(
        request(*messages, ASK, documents=(RAIN,) if documents else (), controls=Controls(**controls)),
        [turn(message.role, message.content) for message in messages] + [ASKED],
        documents=[RAIN_TOLD] if documents else None,
        granite_3=given,
    )


ROWS = {
    "a question": Row(request(ASK), [ASKED]),
    "a system message": Row(request(BRIEF, ASK), [BRIEFED, ASKED]),
    "an empty system message": Row(request(Message("system", ""), ASK), [turn("system", ""), ASKED]),
    "white space": Row(request(Message("user", " \n hi\t\n\n")), [turn("user", " \n hi\t\n\n")]),
    "other scripts": Row(request(Message("user", "駅はどこ 🙂 é")), [turn("user", "駅はどこ 🙂 é")]),
    "several turns": Row(
        request(BRIEF, ASK, Message("assistant", "Wet."), Message("user", "And now?")),
        [BRIEFED, ASKED, turn("assistant", "Wet."), turn("user", "And now?")],
    ),
    "an empty answer": Row(request(ASK, Message("assistant", ""), ASK), [ASKED, turn("assistant", ""), ASKED]),
    "past thinking is not repeated": Row(
        request(ASK, Message("assistant", "Wet.", thinking="Clouds..."), ASK),
        [ASKED, turn("assistant", "Wet."), ASKED],
    ),
    "a tool": Row(request(ASK, tools=(WEATHER,)), [ASKED], tools=[WEATHER_TOLD]),
    "two tools and a system message": Row(
        request(BRIEF, ASK, tools=(WEATHER, TIME)), [BRIEFED, ASKED], tools=[WEATHER_TOLD, TIME_TOLD]
    ),
    "a call and its result": Row(
        request(ASK, Message("assistant", "", tool_calls=(CALL,)), Message("tool", '{"rain": true}', name="weather")),
        [ASKED, turn("assistant", "", tool_calls=[CALLED]), turn("tool", '{"rain": true}', name="weather")],
    ),
    "two calls, two results, and a question": Row(
        request(
            ASK,
            Message("assistant", "Let me look.", tool_calls=(CALL, CALL)),
            Message("tool", "rain"),
            Message("tool", "sun"),
            Message("assistant", "Both."),
            Message("user", "Sure?"),
            tools=(WEATHER,),
        ),
        [
            ASKED,
            turn("assistant", "Let me look.", tool_calls=[CALLED, CALLED]),
            turn("tool", "rain"),
            turn("tool", "sun"),
            turn("assistant", "Both."),
            turn("user", "Sure?"),
        ],
        tools=[WEATHER_TOLD],
    ),
    "a call that cannot be read": Row(
        request(ASK, Message("assistant", "", tool_calls=(BAD,)), Message("tool", "Not JSON.")),
        [ASKED, turn("assistant", "", tool_calls=[BAD_CALLED]), turn("tool", "Not JSON.")],
    ),
    "documents": Row(request(ASK, documents=(RAIN, SUN)), [ASKED], documents=[RAIN_TOLD, SUN_TOLD]),
    "documents and a system message": Row(
        request(BRIEF, ASK, documents=(RAIN,)), [BRIEFED, ASKED], documents=[RAIN_TOLD]
    ),
    "documents and tools": Row(
        request(ASK, documents=(RAIN,), tools=(TIME,)), [ASKED], tools=[TIME_TOLD], documents=[RAIN_TOLD]
    ),
    "thinking": controlled({"thinking": True}, documents=False, thinking="full"),
    "no thinking": controlled({"thinking": False}, documents=False, thinking="off"),
    "a level that is not known": controlled({}, documents=False, thinking="low"),
    "short": controlled({"controls": {"length": "short"}}, documents=False, length="short"),
    "long and in its own words": controlled(
        {"controls": {"length": "long", "originality": "abstractive"}},
        documents=False,
        length="long",
        originality="abstractive",
    ),
    "citations": controlled({"controls": {"citations": True}}, citations=True),
    "citations without documents": controlled({"controls": {"citations": True}}, documents=False, citations=True),
    "all lists, after a system message": controlled(
        {"controls": {"citations": True, "hallucinations": True}}, BRIEF, citations=True, hallucinations=True
    ),
    "everything": controlled(
        {"thinking": True, "controls": {"citations": True, "hallucinations": True, "length": "short"}},
        thinking="full",
        length="short",
        citations=True,
        hallucinations=True,
    ),
}


@pytest.fixture(params=["granite-3.3-instruct", "granite-4.0"])
def tokenizer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tokenizer with an original template, on 9 April 2025."""
    monkeypatch.setattr(chat_template_utils, "datetime", Frozen)
    monkeypatch.setattr(jinja_chat, "datetime", Frozen)
    return byte_tokenizer(real_template(request.param))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_prompt_equals_that_of_the_template(tokenizer: Any, row: Row) -> None:
    given: dict[str, Any] = {"conversation": row.turns, "tools": row.tools, "documents": row.documents}
    if "strftime_now" in tokenizer.chat_template:
        given.update(row.granite_3)
    text = tokenizer.apply_chat_template(**given, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.apply_chat_template(**given, add_generation_prompt=True, return_dict=False)
    assert render_text(tokenizer, row.request) == text
    assert jinja_chat.apply_chat_template(tokenizer.chat_template, **given, add_generation_prompt=True) == text
    assert render_chat(tokenizer, row.request) == ids
    parts = render_parts(tokenizer, row.request)
    assert [token for part in parts for token, _ in part.tokens] == ids
    assert "".join(part.text for part in parts) == text


LITERAL = {
    ("granite-3.3-instruct", "a question"): (
        "<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024. Today's Date: April 09, 2025. "
        "You are Granite, developed by IBM. You are a helpful AI assistant.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>What is the weather in Zürich?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>"
    ),
    ("granite-3.3-instruct", "all lists, after a system message"): (
        "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n"
        '<|start_of_role|>document {"document_id": "1"}<|end_of_role|>\n'
        'It "rains".\nOften. 雨<|end_of_text|>\n'
        "<|start_of_role|>user<|end_of_role|>What is the weather in Zürich?<|end_of_text|>\n"
        '<|start_of_role|>assistant {"citations": true, "hallucinations": true}<|end_of_role|>'
    ),
    ("granite-4.0", "several turns"): (
        "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>What is the weather in Zürich?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>Wet.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>And now?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>"
    ),
}
LITERAL_END = {
    ("granite-3.3-instruct", "two tools and a system message"): (
        '        "function": {\n            "name": "time",\n            "description": "",\n'
        '            "parameters": {}\n        }\n    }\n]<|end_of_text|>\n'
        "<|start_of_role|>user<|end_of_role|>What is the weather in Zürich?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>"
    ),
    ("granite-4.0", "a call and its result"): (
        "<|start_of_role|>assistant<|end_of_role|><tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Zürich", "days": 2, "deep": {"list": [1, "two", null]}}}\n'
        "</tool_call><|end_of_text|>\n"
        '<|start_of_role|>user<|end_of_role|>\n<tool_response>\n{"rain": true}\n</tool_response><|end_of_text|>\n'
        "<|start_of_role|>assistant<|end_of_role|>"
    ),
}


@pytest.mark.parametrize(("name", "row"), [*LITERAL, *LITERAL_END])
def test_the_whole_text(monkeypatch: pytest.MonkeyPatch, name: str, row: str) -> None:
    monkeypatch.setattr(jinja_chat, "datetime", Frozen)
    text = render_text(byte_tokenizer(real_template(name)), ROWS[row].request)
    if (name, row) in LITERAL:
        assert text == LITERAL[name, row]
    else:
        assert text.endswith(LITERAL_END[name, row])


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


OBJECT = {"type": "object", "properties": {"x": {"type": "string", "pattern": "^a+$"}}, "required": ["x"]}
USER: dict[str, Any] = {"role": "user", "content": "Why?"}
SYSTEM: dict[str, Any] = {"role": "system", "content": "Be brief."}
BOT: dict[str, Any] = {"role": "assistant", "content": "So."}


def called(arguments: str) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": "1", "content": "4", "name": "f"}
TOOL_FORMS: dict[str, list[dict[str, Any]]] = {
    "no description": [function(parameters=OBJECT)],
    "no parameters": [function(description="D")],
    "a name only": [function()],
    "a return": [function(description="D", parameters=OBJECT, **{"return": {"type": "string", "description": "R"}})],
    "strict": [function(description="D", parameters=OBJECT, strict=False)],
    "another order": [{"function": {"parameters": OBJECT, "description": 'é "q"', "name": "f"}, "type": "function"}],
    "other keys": [{**function(parameters=OBJECT), "x-own": {"a": [1, None, True]}}],
    "128 tools": [{"type": "function", "function": {"name": f"f{number}"}} for number in range(128)],
    "empty parameters": [function(parameters={})],
}
DOCUMENT_FORMS: dict[str, list[dict[str, Any]]] = {
    "IBM's": [{"doc_id": 7, "title": "T", "text": "D", "source": "S"}],
    "text and doc_id": [{"doc_id": "a", "text": "D"}],
    "another order": [{"text": "D", "doc_id": 2, "title": ""}],
    "a source": [{"doc_id": 1, "source": "S", "text": "D é"}, {"doc_id": 2, "text": "E"}],
}
TALKS: dict[str, list[dict[str, Any]]] = {
    "a question": [USER],
    "a system message": [SYSTEM, USER],
    "a system message alone": [SYSTEM],
    "an empty question": [{"role": "user", "content": ""}],
    "several turns": [SYSTEM, USER, BOT, USER],
    "a name": [{**USER, "name": "Ann"}],
    "a call": [USER, called('{"x": "a"}'), RESULT],
    "a call that is no JSON": [USER, called('{"x": '), RESULT, BOT, USER],
    "a call that is a list": [USER, called("[1]"), RESULT],
    "white space": [{"role": "user", "content": " \n a\t"}],
}
BODIES: dict[str, dict[str, Any]] = {
    **{f"{talk}, plain": {"messages": turns} for talk, turns in TALKS.items()},
    **{f"{talk}, a tool": {"messages": turns, "tools": [function()]} for talk, turns in TALKS.items()},
    **{
        f"{talk}, a document": {"messages": turns, "documents": DOCUMENT_FORMS["IBM's"]}
        for talk, turns in TALKS.items()
    },
    **{
        f"{talk}, both": {"messages": turns, "documents": DOCUMENT_FORMS["a source"], "tools": TOOL_FORMS["a return"]}
        for talk, turns in TALKS.items()
    },
    **{f"tools, {form}": {"messages": [USER], "tools": tools} for form, tools in TOOL_FORMS.items()},
    **{
        f"documents, {form}": {"messages": [SYSTEM, USER], "documents": given}
        for form, given in DOCUMENT_FORMS.items()
    },
    **{
        f"continued, {len(before)} {words!r}": {"messages": [*before, USER, {**BOT, "content": words}]}
        for before in ([], [SYSTEM])
        for words in ("So", "So: ", "é\n\n", "a")
    },
}  # fmt: skip


def as_the_template_takes_it(body: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``apply_chat_template``: arguments of calls are objects where they are JSON objects."""
    turns = []
    for message in body["messages"]:
        turn_given = {key: value for key, value in message.items() if key != "tool_call_id"}
        calls = []
        for call in message.get("tool_calls", ()):
            arguments = call["function"]["arguments"]
            with suppress(ValueError):
                value = json.loads(arguments)
                arguments = value if isinstance(value, dict) else arguments
            calls.append({"type": "function", "function": {"name": call["function"]["name"], "arguments": arguments}})
        turns.append({**turn_given, "tool_calls": calls} if calls else turn_given)
    return {"conversation": turns, "tools": body.get("tools"), "documents": body.get("documents")}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_of_the_api_reaches_the_template_as_it_was_given(tokenizer: Any, body: dict[str, Any]) -> None:
    [asked] = requests_of(ChatRequest.model_validate(body), READY)
    given = as_the_template_takes_it(body)
    continued = body["messages"][-1]["role"] == "assistant"
    ends: dict[str, Any] = {"continue_final_message": True} if continued else {"add_generation_prompt": True}
    text = tokenizer.apply_chat_template(**given, **ends, tokenize=False)
    assert render_text(tokenizer, asked) == text
    assert render_chat(tokenizer, asked) == tokenizer(text, add_special_tokens=False).input_ids
    assert "".join(part.text for part in render_parts(tokenizer, asked)) == text


def test_there_are_enough_bodies() -> None:
    assert len(BODIES) >= 60
