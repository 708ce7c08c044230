"""Chats through OpenAI's own client, over a scripted backend on a real port."""

import json
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from granite_demo.errors import EngineError
from granite_demo.types.events import (
    Appendix,
    Citation,
    Finish,
    FinishReason,
    Queued,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
    Timings,
    TokenScored,
    ToolCalled,
    Usage,
)
from granite_demo.types.logprobs import ScoredToken, TokenAlternative
from granite_demo.types.messages import Controls, Document, Message, Switches, ToolCall
from tests.fakes import FakeBackend

SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
HI: Any = [{"role": "user", "content": "Hi"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}


def end(reason: FinishReason = "stop", tokens: int = 3, thinking: int = 0) -> Finish:
    return Finish(reason, Usage(5, tokens, thinking), Timings(0.1, 0.2))


def scored(text: str, logprob: float) -> TokenScored:
    top = (TokenAlternative(1, text, logprob), TokenAlternative(2, "other", float("-inf")))
    return TokenScored(ScoredToken(1, text, logprob, alternatives=top))


def streamed(client: openai.OpenAI, **given: Any) -> list[Any]:
    given = {"model": "fake", "messages": HI, **given}
    return list(client.chat.completions.create(stream=True, **given))


def test_a_whole_answer(client: openai.OpenAI, fake: FakeBackend) -> None:
    answer = client.chat.completions.create(model="fake", messages=HI)
    assert answer.object == "chat.completion"
    assert answer.model == "fake"
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello world!", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 3, 8)
    assert fake.requests[0].sampling.temperature == 1.0
    assert fake.requests[0].sampling.max_tokens is None


def test_a_stream_gives_the_same_as_the_whole(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.delay = 0.05  # what comes at once goes out at once
    chunks = streamed(client)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello world!"
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", None, None, None]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_counts_its_tokens_where_that_is_asked_for(client: openai.OpenAI) -> None:
    *_, last = streamed(client, stream_options={"include_usage": True})
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (5, 3)


def test_the_bytes_of_a_stream(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", json={"messages": HI, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert all(event.startswith("data: {") for event in events[:-2])
    assert events[-2:] == ["data: [DONE]", ""]


def test_every_parameter_reaches_the_backend(client: openai.OpenAI, fake: FakeBackend) -> None:
    client.chat.completions.create(
        model="default",
        messages=HI,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=["a", "b"],
        max_completion_tokens=9,
        logprobs=True,
        top_logprobs=2,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        logit_bias={"5": -100},
        response_format={"type": "json_object"},
        user="me",
        metadata={"a": "b"},
        store=False,
        extra_body={"top_k": 4, "min_p": 0.05, "repetition_penalty": 1.1, "documents": [{"title": "T", "text": "D"}]},
    )
    request = fake.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 4, 0.05)
    assert (sampling.seed, sampling.stop, sampling.max_tokens, sampling.logprobs) == (7, ("a", "b"), 9, 2)
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.repetition_penalty) == (0.1, 0.2, 1.1)
    assert sampling.logit_bias == ((5, -100.0),)
    assert sampling.constraint is not None
    assert sampling.constraint.kind == "json_object"
    assert request.documents == (Document("T", "D"),)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": SCHEMA}, "json_schema"),
        ({"guided_regex": "a+"}, "regex"),
        ({"guided_choice": ["a", "b"]}, "choice"),
        ({"structured_outputs": {"regex": "a+"}}, "regex"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice"),
        ({"structured_outputs": {"json": {"type": "object"}}}, "json_schema"),
    ],
)
def test_formats(client: openai.OpenAI, fake: FakeBackend, fields: dict[str, Any], kind: str | None) -> None:
    client.chat.completions.create(model="fake", messages=HI, extra_body=fields)
    constraint = fake.requests[0].sampling.constraint
    assert (constraint and constraint.kind) == kind


def test_several_answers_with_seeds_of_their_own(client: openai.OpenAI, fake: FakeBackend) -> None:
    answer = client.chat.completions.create(model="fake", messages=HI, n=4, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.message.content for choice in answer.choices] == ["Hello world!"] * 4
    assert sorted(request.sampling.seed or 0 for request in fake.requests) == [7, 8, 9, 10]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 12)


def test_several_answers_run_at_once(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.delay = 0.02
    order = [chunk.choices[0].index for chunk in streamed(client, n=2)]
    assert order != sorted(order)
    assert [order.count(index) for index in (0, 1)] == [4, 4]


def test_thinking(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.script = [
        Queued(1),
        ReasoningDelta("Let me", 1),
        ReasoningDelta(" see.", 2),
        TextDelta("4", 3),
        end(thinking=2),
    ]
    message: Any = client.chat.completions.create(model="fake", messages=HI)
    assert message.choices[0].message.reasoning_content == "Let me see."
    assert message.choices[0].message.content == "4"
    assert message.usage.completion_tokens_details.reasoning_tokens == 2
    deltas = [chunk.choices[0].delta for chunk in streamed(client)]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Let me see."
    assert "".join(delta.content or "" for delta in deltas) == "4"


def test_calls_of_tools(client: openai.OpenAI, fake: FakeBackend) -> None:
    calls = [ToolCalled(ToolCall("add", '{"a": 1}')), ToolCalled(ToolCall("add", '{"a": 2}'))]
    fake.script = [TextDelta("", 1), *calls, end("tool_calls")]
    given: Any = {"model": "fake", "messages": HI, "tools": [TOOL], "tool_choice": "auto"}
    choice = client.chat.completions.create(**given).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    made: Any = choice.message.tool_calls
    assert [(call.type, call.function.name, call.function.arguments) for call in made] == [
        ("function", "add", '{"a": 1}'),
        ("function", "add", '{"a": 2}'),
    ]
    assert fake.requests[0].tools[0].name == "add"
    deltas = [call for chunk in streamed(client, tools=[TOOL]) for call in chunk.choices[0].delta.tool_calls or []]
    assert [(call.index, call.function.arguments) for call in deltas] == [(0, '{"a": 1}'), (1, '{"a": 2}')]
    assert len({call.id for call in deltas}) == 2


def test_a_call_goes_back_as_it_came(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.script = [ToolCalled(ToolCall("add", '{"a": 1}')), end("tool_calls")]
    asked: list[Any] = [{"role": "developer", "content": "Be kind."}, *HI]
    message = client.chat.completions.create(model="fake", messages=asked, tools=[TOOL]).choices[0].message
    assert message.tool_calls
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": [{"type": "text", "text": "4"}]}
    again: list[Any] = [*asked, message, result]
    client.chat.completions.create(model="fake", messages=again, tools=[TOOL])
    assert fake.requests[1].messages == (
        Message("system", "Be kind."),
        Message("user", "Hi"),
        Message("assistant", "", tool_calls=(ToolCall("add", '{"a": 1}'),)),
        Message("tool", "4", name="add"),
    )


def test_a_call_that_cannot_be_read_is_text(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.script = [ToolCalled(ToolCall("add", '{"a": ', "It was cut off.")), end("length")]
    choice = client.chat.completions.create(model="fake", messages=HI, tools=[TOOL]).choices[0]
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (
        '{"name": "add", "arguments": {"a": }',
        None,
        "length",
    )


def test_no_tool_is_offered_where_none_may_be_called(client: openai.OpenAI, fake: FakeBackend) -> None:
    client.chat.completions.create(model="fake", messages=HI, tools=[TOOL], tool_choice="none")
    assert fake.requests[0].tools == ()


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_call_that_must_come(client: openai.OpenAI, fake: FakeBackend, choice: Any) -> None:
    other = {"type": "function", "function": {"name": "sub", "parameters": {"type": "object"}}}
    fake.script = [TextDelta('{"name": "add", ', 3), TextDelta('"arguments": {"a": 1}}', 6), end()]
    given: Any = {"tools": [TOOL, other], "tool_choice": choice}
    made: Any = client.chat.completions.create(model="fake", messages=HI, **given).choices[0]
    assert (made.finish_reason, made.message.content) == ("tool_calls", None)
    assert [(call.function.name, call.function.arguments) for call in made.message.tool_calls] == [("add", '{"a": 1}')]
    last = streamed(client, **given)[-1].choices[0]
    assert last.finish_reason == "tool_calls"
    assert [call.function.name for call in last.delta.tool_calls] == ["add"]
    constraint = fake.requests[0].sampling.constraint
    assert constraint is not None
    names = [form["properties"]["name"]["const"] for form in json.loads(constraint.schema)["anyOf"]]
    assert names == (["add", "sub"] if choice == "required" else ["add"])


def test_thinking_may_come_before_a_call_that_must(client: openai.OpenAI, fake: FakeBackend) -> None:
    call = TextDelta('{"name": "add", "arguments": {"a": 1}}', 6)
    fake.script = [ReasoningDelta("I add.", 3), call, end()]
    given: Any = {"tools": [TOOL], "tool_choice": "required"}
    made: Any = client.chat.completions.create(model="fake", messages=HI, **given).choices[0]
    assert (made.message.reasoning_content, made.message.content) == ("I add.", None)
    assert [call.function.arguments for call in made.message.tool_calls] == ['{"a": 1}']


def test_a_call_that_must_come_but_is_cut_off_is_text(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.script = [TextDelta('{"name": "add", "argum', 3), end("length")]
    given: Any = {"tools": [TOOL], "tool_choice": "required"}
    choice = client.chat.completions.create(model="fake", messages=HI, **given).choices[0]
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    assert choice.message.content == '{"name": "add", "argum'


@pytest.mark.parametrize(
    "changes",
    [
        {"tool_choice": {"type": "function", "function": {"name": "sub"}}},
        {"tool_choice": {"type": "function"}},
        {"tool_choice": "required", "response_format": {"type": "json_object"}},
        {"tools": [{**TOOL, "function": {**TOOL["function"], "parameters": {"type": "object", "not": {}}}}]},
    ],
)
def test_a_call_that_cannot_be_forced_is_refused(client: openai.OpenAI, changes: dict[str, Any]) -> None:
    given: Any = {"model": "fake", "messages": HI, "tools": [TOOL], "tool_choice": "required", **changes}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**given)
    assert refused.value.param in ("tool_choice", "tools")


def test_log_probabilities(client: openai.OpenAI, fake: FakeBackend) -> None:
    events: list[StreamEvent] = [scored("He", -0.5), TextDelta("", 1), scored("llo", -1.0), TextDelta("Hello", 2)]
    fake.script = [*events, scored("\ufffd", -2.0), end()]
    found = client.chat.completions.create(model="fake", messages=HI, logprobs=True, top_logprobs=2).choices[0].logprobs
    assert found is not None
    assert found.content is not None
    assert [(token.token, token.logprob) for token in found.content] == [("He", -0.5), ("llo", -1.0), ("\ufffd", -2.0)]
    assert [token.bytes for token in found.content] == [[72, 101], [108, 108, 111], None]
    assert [top.logprob for top in found.content[0].top_logprobs] == [-0.5, -9999.0]
    chunks = [chunk.choices[0] for chunk in streamed(client, logprobs=True, top_logprobs=2)]
    tokens = [token.token for choice in chunks if choice.logprobs for token in choice.logprobs.content]
    assert tokens == ["He", "llo", "\ufffd"]
    assert "".join(choice.delta.content or "" for choice in chunks) == "Hello"


def test_citations_and_what_follows_an_answer(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.script = [TextDelta("So.", 1), Citation("1", 0, 3), Appendix("citations", "1: that"), end()]
    message: Any = client.chat.completions.create(model="fake", messages=HI).choices[0].message
    assert message.citations == [{"document": "1", "start": 0, "end": 3}]
    assert message.appendices == [{"kind": "citations", "text": "1: that"}]


@pytest.mark.parametrize(
    ("fields", "controls"),
    [
        ({"chat_template_kwargs": {"thinking": True}}, Controls("full")),
        ({"chat_template_kwargs": {"thinking": "low"}}, Controls("low")),
        ({"chat_template_kwargs": {"enable_thinking": False}}, Controls("off")),
        ({"chat_template_kwargs": {"enable_thinking": True, "low_effort": True}}, Controls("low")),
        ({"reasoning_effort": "high"}, Controls("full")),
        ({"reasoning_effort": "medium"}, Controls("full")),
        ({"reasoning_effort": "minimal"}, Controls("low")),
        ({"chat_template_kwargs": {"reasoning_effort": "low", "enable_thinking": None}}, Controls("low")),
        ({"chat_template_kwargs": {"truncate_history_thinking": False}}, Controls(truncate_history_thinking=False)),
        ({"chat_template_kwargs": {"schema_in_prompt": True}}, Controls(schema_in_prompt=True)),
        ({"chat_template_kwargs": {"controls": {"length": "short"}}}, Controls(length="short")),
        ({}, Controls()),
    ],
)
def test_switches(client: openai.OpenAI, fake: FakeBackend, fields: dict[str, Any], controls: Controls) -> None:
    fake.state = replace(fake.state, switches=Switches(thinking=("off", "low", "full"), length=True, dialect="4.0"))
    client.chat.completions.create(model="fake", messages=HI, extra_body=fields)
    assert fake.requests[0].controls == controls


def test_the_last_message_of_the_assistant_is_continued(client: openai.OpenAI, fake: FakeBackend) -> None:
    turns: list[Any] = [{"role": "user", "content": "Hi", "name": "Ann"}, {"role": "assistant", "content": "So "}]
    client.chat.completions.create(model="fake", messages=turns, extra_body={"add_generation_prompt": False})
    assert fake.requests[0].continued
    assert fake.requests[0].messages == (Message("user", "Hi", name="Ann"), Message("assistant", "So "))


def test_an_error_during_a_stream_is_sent_in_it(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.error, fake.delay = EngineError('The model "failed".'), 0.05
    heard = []
    with pytest.raises(openai.APIError, match='The model "failed"'):
        for chunk in client.chat.completions.create(model="fake", messages=HI, stream=True):
            heard.append(chunk.choices[0].delta.content)
    assert heard == ["Hello", " world", "!"]


def test_an_answer_without_an_end_is_an_error(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.script = [TextDelta("So", 1)]
    with pytest.raises(openai.InternalServerError, match="before it was finished"):
        client.chat.completions.create(model="fake", messages=HI)


def test_the_errors_are_those_that_the_client_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="fake", messages=HI, temperature=3)
    assert (refused.value.param, refused.value.code, refused.value.type) == (
        "temperature",
        "invalid_value",
        "invalid_request_error",
    )
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=HI)


def test_models(client: openai.OpenAI, fake: FakeBackend) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").id == "fake"
    fake.state = replace(fake.state, model="/home/somebody/my-model")
    assert [model.id for model in client.models.list()] == ["my-model"]
    fake.state = replace(fake.state, model="auto", name="granite-4.0-micro")
    assert client.chat.completions.create(model="auto", messages=HI).model == "granite-4.0-micro"
