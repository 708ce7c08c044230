"""Tests for the record of an answer, its file, and damaged files."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from granite_demo.chat import bundle
from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation
from granite_demo.chat.tools import EXAMPLE_TOOLS, to_json
from granite_demo.errors import InvalidRequestError
from granite_demo.types.events import Finish, Provenance, Timings, Usage
from granite_demo.types.messages import Controls, Document, ToolCall
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams

TRACE = Provenance("sample", "abc", "t" * 64, "p" * 64, {"Device": "cpu", "Precision": "float32"})
FINISH = Finish("stop", Usage(12, 3), Timings(0.123456, 0.5), 77, (5, 6, 0), TRACE)


def conversation_and_request() -> tuple[Conversation, GenerationRequest]:
    """Return a conversation that uses all features, up to the question, and its request."""
    conversation = conversations.start(
        system="Be brief.",
        documents=(Document(title="A", text="a b"),),
        tools=to_json(EXAMPLE_TOOLS),
        controls=Controls(thinking="full", citations=True),
        overflow="drop",
    )
    conversation = conversations.add(conversation, "user", content="6 times 7?")
    calls = (ToolCall(name="calculator", arguments='{"expression": "6*7"}'),)
    conversation = conversations.add(conversation, "assistant", calls=calls, thinking="Hm.")
    conversation = conversations.add(conversation, "tool", name="calculator", content="42")
    request = GenerationRequest(
        conversations.to_messages(conversation),
        sampling=SamplingParams(temperature=0.7, top_p=0.9, stop=("\n\n",), max_tokens=50),
        tools=EXAMPLE_TOOLS,
        documents=(Document("A", "a b"),),
        controls=Controls(thinking="full", citations=True),
        overflow="drop",
    )
    return conversation, request


def answered() -> tuple[Conversation, GenerationRequest]:
    """Return the same with an answer, after which the conversation was changed."""
    conversation, request = conversation_and_request()
    values: dict[str, Any] = {"content": "It is 42.", "thinking": "So.", "made": bundle.made(request, FINISH)}
    conversation = conversations.add(conversation, "assistant", **values)
    return conversation.model_copy(update={"controls": Controls(), "overflow": "refuse"}), request


def saved() -> dict[str, Any]:
    conversation, _ = answered()
    return bundle.bundle(conversation, str(conversation.head))


def read(value: Any) -> bundle.Bundle:
    return bundle.read_bundle(json.dumps(value))


def test_the_record_is_json_and_small() -> None:
    _, request = conversation_and_request()
    kept = bundle.made(request, FINISH)
    assert json.loads(json.dumps(kept)) == kept
    assert len(json.dumps(kept)) < 1200
    assert kept["sampling"] == {"temperature": 0.7, "top_p": 0.9, "stop": ["\n\n"], "max_tokens": 50, "seed": 77}
    assert kept["controls"] == {"thinking": "full", "citations": True}
    assert kept["provenance"]["choices"] == {"Device": "cpu", "Precision": "float32"}
    assert kept["timings"] == {"ttft": 0.1235, "total": 0.5, "reasoning": 0.0, "written": 0}
    assert kept["usage"] == {"prompt_tokens": 12, "completion_tokens": 3, "reasoning_tokens": 0}
    always = {"granite-demo", "transformers", "torch", "tokenizers", "gradio", "python"}
    assert always <= set(kept["versions"]) <= always | {"xllamacpp", "bitsandbytes", "flash-attn"}
    assert kept["time"].endswith("+00:00")


def test_the_record_of_a_greedy_answer_without_provenance() -> None:
    kept = bundle.made(GenerationRequest(prompt="Once"), Finish("length", Usage(1, 1), Timings(0.1, 0.1)))
    assert (kept["sampling"], kept["provenance"], kept["token_ids"]) == ({}, {}, [])


def test_a_file_has_the_request_with_the_random_seed() -> None:
    conversation, request = answered()
    text = json.dumps(bundle.bundle(conversation, str(conversation.head)))
    found = bundle.to_request(bundle.read_bundle(text))
    assert found.sampling.seed == 77
    assert request.sampling.seed is None
    assert found.messages == request.messages
    assert found.messages[2].tool_calls == (ToolCall("calculator", '{"expression": "6*7"}'),)
    assert (found.tools, found.documents) == (request.tools, request.documents)
    assert (found.controls, found.overflow) == (request.controls, "drop")
    for name in ("temperature", "top_p", "stop", "max_tokens"):
        assert getattr(found.sampling, name) == getattr(request.sampling, name)


def test_a_file_has_the_answer_and_its_record() -> None:
    value = saved()
    assert (value["format"], value["version"]) == ("granite-demo-answer", 1)
    assert value["answer"] == {"text": "It is 42.", "thinking": "So.", "calls": []}
    made = read(value).made
    assert (made.token_ids, made.finish_reason) == ((5, 6, 0), "stop")
    assert (made.provenance.model, made.provenance.revision) == ("sample", "abc")


def test_a_file_has_only_the_branch_before_the_answer() -> None:
    conversation, _ = answered()
    answer = str(conversation.head)
    later = conversations.add(conversation, "user", content="And 7 times 8?")
    assert "7 times 8" not in json.dumps(bundle.bundle(later, answer))
    assert bundle.bundle(later, answer) == bundle.bundle(conversation, answer)


def test_a_question_or_an_answer_without_a_record_has_no_file() -> None:
    conversation, _ = answered()
    question = conversations.path(conversation)[0].id
    unknown = conversations.add(conversations.rewind(conversation, question), "assistant", content="It")
    for turn in (question, str(unknown.head), "gone"):
        with pytest.raises(InvalidRequestError):
            bundle.bundle(unknown, turn)


def test_a_stopped_answer_has_a_file() -> None:
    conversation, request = conversation_and_request()
    kept = bundle.made(request, None)
    assert json.loads(json.dumps(kept)) == kept
    complete = bundle.made(request, FINISH)
    assert kept["sampling"] == {"temperature": 0.7, "top_p": 0.9, "stop": ["\n\n"], "max_tokens": 50}
    assert set(complete) - set(kept) == {"usage", "timings", "token_ids", "provenance"}
    for name in ("controls", "overflow", "carried", "versions"):
        assert kept[name] == complete[name]
    conversation = conversations.add(conversation, "assistant", content="It", made=kept)
    value = bundle.bundle(conversation, str(conversation.head))
    found = read(value)
    assert "note" not in value
    assert (found.answer.text, found.made.finish_reason, found.made.token_ids) == ("It", "stopped", ())
    assert bundle.to_request(found) == request


CHANGES: list[dict[str, Any]] = [
    {"system": "Be long."},
    {"system": ""},
    {"tools": ""},
    {"tools": to_json(EXAMPLE_TOOLS).replace("expression", "formula")},
    {"documents": ()},
    {"documents": (Document(title="A", text="a c"),)},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_change_after_the_answer_has_a_note(change: dict[str, Any]) -> None:
    conversation, _ = answered()
    assert "note" not in bundle.bundle(conversation, str(conversation.head))
    value = bundle.bundle(conversation.model_copy(update=change), str(conversation.head))
    assert value["note"] == read(value).note == bundle.CHANGED


def test_equal_values_are_not_a_change() -> None:
    conversation, _ = answered()
    same = {"system": " Be brief.\n", "tools": json.dumps(json.loads(to_json(EXAMPLE_TOOLS)), indent=7)}
    assert "note" not in bundle.bundle(conversation.model_copy(update=same), str(conversation.head))


BROKEN = {"tools": "[{"}


def test_tools_that_cannot_be_parsed_are_left_out_with_a_note() -> None:
    conversation, _ = answered()
    value = bundle.bundle(conversation.model_copy(update=BROKEN), str(conversation.head))
    assert value["request"]["tools"] == []
    assert value["note"] == f"{bundle.CHANGED} {bundle.UNREADABLE_TOOLS}"
    read(value)


def test_tools_that_were_never_sent_can_be_malformed() -> None:
    conversation = conversations.add(conversations.start(), "user", content="Hi")
    request = GenerationRequest(conversations.to_messages(conversation))
    conversation = conversations.add(conversation, "assistant", content="Hi", made=bundle.made(request, FINISH))
    value = bundle.bundle(conversation.model_copy(update=BROKEN), str(conversation.head))
    assert "note" not in value
    assert bundle.to_request(read(value)).messages == request.messages


def test_answers_and_files_of_earlier_versions_can_be_read() -> None:
    conversation, request = answered()
    kept = {name: value for name, value in bundle.made(request, FINISH).items() if name != "carried"}
    older = conversations.change(conversation, str(conversation.head), made=kept)
    value = bundle.bundle(older.model_copy(update={"system": "Be long."}), str(older.head))
    # The record has no hash, so there is no note.
    assert "note" not in value
    assert (read(value).note, read(value).made.carried) == ("", "")
    assert bundle.bundle(older.model_copy(update=BROKEN), str(older.head))["note"] == bundle.UNREADABLE_TOOLS


def test_a_prompt_without_messages_can_be_read() -> None:
    asked = {"prompt": "Once", "sampling": {}}
    found = read({"format": bundle.BUNDLE_FORMAT, "version": 1, "request": asked, "answer": {"text": "x"}, "made": {}})
    assert bundle.to_request(found) == GenerationRequest(prompt="Once")


def changed(*path: Any, to: Any) -> dict[str, Any]:
    value = saved()
    at: Any = value
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "not a file of granite-demo"),
        ({}, "format"),
        (changed("format", to="granite-demo"), "format"),
        (changed("version", to=2), "version"),
        (changed("answer", to={}), "answer.text"),
        (changed("request", "messages", to="hello"), "request.messages"),
        (changed("request", "messages", to=[]), "either messages or a prompt"),
        (changed("request", "messages", 0, "role", to="robot"), "role"),
        (changed("request", "messages", 1, "content", to=3), "content"),
        (changed("request", "messages", 1, "thinking", to="x"), "Only a message of the assistant"),
        (changed("request", "sampling", "temperature", to="hot"), "temperature"),
        (changed("request", "sampling", "temperature", to=3), "Temperature must be"),
        (changed("request", "sampling", "seed", to=-1), "Seed must be"),
        (changed("request", "tools", to=[{"name": "a b"}]), "letters, digits"),
        (changed("request", "controls", to={"thinking": "deep"}), "controls.thinking"),
        (changed("made", "token_ids", to=["1"]), "token_ids"),
        (changed("made", "provenance", to=[]), "provenance"),
        (changed("made", "finish_reason", to="asleep"), "finish_reason"),
        (changed("note", to=3), "note"),
    ],
)
def test_a_damaged_file_raises(value: Any, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        read(value)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[" * 100_000, b"\xff\xfe", '{"version": ' + "9" * 5000 + "}", "NaN"]
)
def test_text_that_is_not_json_raises(text: str | bytes) -> None:
    with pytest.raises(InvalidRequestError, match="not a file of granite-demo"):
        bundle.read_bundle(text)


def test_a_file_that_is_too_large_raises() -> None:
    with pytest.raises(InvalidRequestError, match="larger than 32 MB"):
        bundle.read_bundle(b" " * (bundle.MAX_BUNDLE_BYTES + 1))


@settings(deadline=None)
@given(st.data())
def test_an_incomplete_file_always_raises(data: st.DataObject) -> None:
    text = json.dumps(saved())
    with pytest.raises(InvalidRequestError):
        bundle.read_bundle(text[: data.draw(st.integers(0, len(text) - 1))])
