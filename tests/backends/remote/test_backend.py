"""Tests for the backend of other servers: the requests, the answers, and failures."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from granite_demo.backends.remote import endpoints, tokenize
from granite_demo.backends.remote.backend import RemoteBackend
from granite_demo.errors import (
    ContextOverflowError,
    EngineClosedError,
    GraniteDemoError,
    InvalidRequestError,
    RemoteBusyError,
    RemoteDownError,
    RemoteError,
)
from granite_demo.types.constraints import Constraint
from granite_demo.types.events import (
    Dropped,
    Finish,
    ReasoningDelta,
    ScoreSummary,
    StreamEvent,
    TextDelta,
    TokenScored,
    ToolCalled,
    Usage,
)
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.messages import Controls, Document, Message, ToolCall, ToolSpec
from granite_demo.types.requests import CompareRequest, GenerationRequest, ScoreRequest
from granite_demo.types.sampling_params import SamplingParams
from granite_demo.types.stop import Stop
from tests.fakeserver import FakeServer, ended, remote, said, serving

ROOT = Path(__file__).parents[3]
ASKED = GenerationRequest((Message("user", "Hi"),))


TOO_LONG = (
    "This model's maximum context length is {} tokens. However, you requested {} tokens ({} in the messages, {} in the "
    "completion). Please reduce the length."
)
"""The error text of vLLM."""


def asked(**given: Any) -> GenerationRequest:
    return GenerationRequest((Message("user", "Hi"),), **given)


async def events_of(backend: RemoteBackend, request: GenerationRequest = ASKED) -> list[StreamEvent]:
    async with aclosing(backend.stream(request)) as events:
        return [event async for event in events]


async def test_a_text_with_a_constraint_cannot_be_continued() -> None:
    sampling = SamplingParams(constraint=Constraint("json_object"))
    request = GenerationRequest(prompt='As JSON: {"a"', sampling=sampling, begun=('{"a"', ()))
    server = FakeServer([said("1")])
    refused = pytest.raises(InvalidRequestError, match="Accept or discard the text")
    with serving(server), remote(server) as backend, refused:
        await events_of(backend, request)
    assert not server.bodies


def text_of(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def thinking_of(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, ReasoningDelta))


def finish_of(events: list[StreamEvent]) -> Finish:
    assert isinstance(events[-1], Finish)
    return events[-1]


async def test_a_chat() -> None:
    server = FakeServer()
    with serving(server), remote(server) as backend:
        events = await events_of(backend)
    assert text_of(events) == "Hello world"
    finish = finish_of(events)
    assert (finish.reason, finish.usage, finish.seed) == ("stop", Usage(7, 2), None)
    assert 0 < finish.timings.ttft <= finish.timings.total
    assert finish.provenance is not None
    assert finish.provenance.model == "granite-4.0-micro"
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies[0] == {
        "model": "granite-4.0-micro",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "top_p": 1.0,
    }


async def test_a_completion_of_raw_text_and_of_tokens() -> None:
    server = FakeServer(
        [{"choices": [{"text": "<think> more"}]}, {"choices": [{"text": "", "finish_reason": "length"}]}]
    )
    with serving(server), remote(server) as backend:
        events = await events_of(backend, GenerationRequest(prompt="Once", suffix="end"))
        await events_of(backend, GenerationRequest(prompt_ids=(1, 2)))
    assert text_of(events) == "<think> more"
    assert finish_of(events).reason == "length"
    assert server.paths[0] == "/v1/completions"
    assert (server.bodies[0]["prompt"], server.bodies[0]["suffix"]) == ("Once", "end")
    assert server.bodies[1]["prompt"] == [1, 2]


async def test_all_fields_of_a_request() -> None:
    server = FakeServer()
    server.models = [{"id": "ibm-granite/granite-3.3-8b-instruct"}]
    tool = ToolSpec("add", "Adds.", {"type": "object"})
    call = ToolCall("add", '{"a": 1}')
    messages = (
        Message("user", "1+1"),
        Message("assistant", "", tool_calls=(call, ToolCall("sub", "{}"))),
        Message("tool", "0", name="sub"),
        Message("tool", "2", name="add"),
    )
    sampling = SamplingParams(0.5, 0.9, 40, 1.1, 9, 3, ("END",), 0.1, 2, 0.3, 0.4, ((5, 1.0),))
    request = GenerationRequest(
        messages,
        sampling=sampling,
        tools=(tool,),
        documents=(Document("T", "X"),),
        controls=Controls(thinking="full", length="short"),
    )
    with serving(server), remote(server) as backend:
        await events_of(backend, request)
    body = server.bodies[0]
    calls = body["messages"][1]["tool_calls"]
    assert [one["function"] for one in calls] == [
        {"name": "add", "arguments": '{"a": 1}'},
        {"name": "sub", "arguments": "{}"},
    ]
    assert [turn["tool_call_id"] for turn in body["messages"][2:]] == [calls[1]["id"], calls[0]["id"]]
    assert body["tools"] == [tool.as_function()]
    assert body["documents"] == [{"doc_id": "1", "title": "T", "text": "X"}]
    assert body["chat_template_kwargs"] == {"thinking": True, "controls": {"length": "short"}}
    sent = {name: body[name] for name in ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed")}
    assert sent == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "repetition_penalty": 1.1,
        "max_tokens": 9,
        "seed": 3,
    }
    assert (body["min_p"], body["stop"], body["logit_bias"]) == (0.1, ["END"], {"5": 1.0})
    assert (body["frequency_penalty"], body["presence_penalty"]) == (0.3, 0.4)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)


@pytest.mark.parametrize(
    ("constraint", "fields"),
    [
        (Constraint("json_object"), {"response_format": {"type": "json_object"}}),
        (
            Constraint("json_schema", schema='{"type": "integer"}'),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "integer"}, "strict": True},
                }
            },
        ),
        (Constraint("regex", pattern="[0-9]+"), {"structured_outputs": {"regex": "[0-9]+"}}),
        (Constraint("choice", choices=("yes", "no")), {"structured_outputs": {"choice": ["yes", "no"]}}),
    ],
)
async def test_a_constraint_is_sent(constraint: Constraint, fields: dict[str, Any]) -> None:
    server = FakeServer()
    request = asked(sampling=SamplingParams(constraint=constraint))
    with serving(server), remote(server) as backend:
        await events_of(backend, request)
    assert fields.items() <= server.bodies[0].items()
    server.models[0]["owned_by"] = "somebody"
    with serving(server), remote(server) as backend:
        if "response_format" in fields:
            await events_of(backend, request)
            assert fields.items() <= server.bodies[1].items()
        else:
            with pytest.raises(InvalidRequestError, match="not a regex or choices"):
                await events_of(backend, request)


async def test_a_sampled_answer_has_a_seed_and_switches_off_the_servers_defaults() -> None:
    server = FakeServer()
    with serving(server), remote(server) as backend:
        events = await events_of(backend, asked(sampling=SamplingParams(temperature=1.0)))
    body = server.bodies[0]
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)
    assert finish_of(events).seed == body["seed"]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_thinking_in_a_field_of_its_own(field: str) -> None:
    server = FakeServer([said("", **{field: "Hm"}), said("", **{field: "m."}), said("\n\n"), said("\nYes"), ended()])
    with serving(server), remote(server) as backend:
        events = await events_of(backend)
    assert (thinking_of(events), text_of(events)) == ("Hmm.", "Yes")
    assert finish_of(events).usage.reasoning_tokens > 0


@pytest.mark.parametrize(
    ("model", "text", "thinking", "answer"),
    [
        ("anything", "<think>Hm</think>Yes", "Hm", "Yes"),
        ("granite-3.3-8b-instruct", "<think>Hm</think><response>Yes</response>", "Hm", "Yes"),
        ("granite3.2:8b", "Here is my thought process:\nHm\nHere is my response:\nYes", "Hm", "Yes"),
        ("granite-4.2-8b", "Hm\n</think>\nYes", "Hm", "Yes"),
        ("anything", "Yes</think>", "", "Yes</think>"),
    ],
)
async def test_thinking_between_markers_that_are_split_over_chunks(
    model: str, text: str, thinking: str, answer: str
) -> None:
    server = FakeServer([*(said(letter) for letter in text), ended()])
    server.models = [{"id": model}]
    with serving(server), remote(server) as backend:
        events = await events_of(backend)
    assert (thinking_of(events), text_of(events)) == (thinking, answer)


async def test_an_answer_without_thinking_is_text_if_the_server_parses_thinking() -> None:
    server = FakeServer([said("", reasoning_content="Hm"), said("Yes"), ended()])
    server.models = [{"id": "granite-4.2-8b"}]
    with serving(server), remote(server) as backend:
        await events_of(backend)
        server.chunks = [said("No"), ended()]
        events = await events_of(backend)
    assert (thinking_of(events), text_of(events)) == ("", "No")


async def test_tool_calls_are_joined() -> None:
    def part(index: int, **function: str) -> dict[str, Any]:
        return said("", tool_calls=[{"index": index, "function": function}])

    chunks = [part(0, name="add", arguments=""), part(0, arguments='{"a":'), part(0, arguments=" 1}")]
    chunks += [part(1, name="sub", arguments="{"), ended("tool_calls")]
    server = FakeServer(chunks)
    with serving(server), remote(server) as backend:
        events = await events_of(backend, asked(tools=(ToolSpec("add", "", {}),)))
    calls = [event.call for event in events if isinstance(event, ToolCalled)]
    assert (calls[0].name, calls[0].arguments, calls[0].error) == ("add", '{"a": 1}', "")
    assert "cannot be read" in calls[1].error
    assert finish_of(events).reason == "tool_calls"


async def test_tool_calls_in_the_text_are_parsed_if_the_request_has_tools() -> None:
    server = FakeServer([said('<tool_call>{"name": "add", "arguments": {}}</tool_call>'), ended()])
    server.models = [{"id": "anything"}]
    with serving(server), remote(server) as backend:
        events = await events_of(backend, asked(tools=(ToolSpec("add", "", {}),)))
        plain = await events_of(backend)
    assert [event.call.name for event in events if isinstance(event, ToolCalled)] == ["add"]
    assert finish_of(events).reason == "tool_calls"
    assert text_of(plain).startswith("<tool_call>")


async def test_log_probabilities() -> None:
    top = [{"token": "a", "logprob": -2.0}, {"token": "A", "logprob": -0.5}]
    chunk = {
        "choices": [
            {"delta": {"content": "A"}, "logprobs": {"content": [{"token": "A", "logprob": -0.5, "top_logprobs": top}]}}
        ]
    }
    server = FakeServer([chunk, ended()])
    with serving(server), remote(server) as backend:
        events = await events_of(backend, asked(sampling=SamplingParams(logprobs=2)))
    (scored,) = [event.token for event in events if isinstance(event, TokenScored)]
    assert (scored.id, scored.text, scored.logprob) == (-1, "A", -0.5)
    assert [one.text for one in scored.alternatives] == ["A", "a"]


async def test_a_stop_string_that_the_server_does_not_know_still_ends_the_answer() -> None:
    server = FakeServer([said("one E"), said("ND two"), *[said("x")] * 5000, ended()])
    server.delay = 0.02
    with serving(server), remote(server) as backend:
        request = asked(sampling=SamplingParams(stop=("END",)))
        events = await asyncio.wait_for(events_of(backend, request), 20)
        assert (text_of(events), finish_of(events).reason) == ("one ", "stop")
        await wait_until_idle(server)


async def failure_of(backend: RemoteBackend) -> GraniteDemoError:
    with pytest.raises(GraniteDemoError) as raised:
        await events_of(backend)
    return raised.value


async def wait_until_idle(server: FakeServer, seconds: float = 2.0) -> None:
    deadline = time.monotonic() + seconds
    while server.running:
        assert time.monotonic() < deadline, "the server still sends"
        await asyncio.sleep(0.02)


async def test_closing_the_stream_ends_the_request_on_the_server() -> None:
    server = FakeServer([said("x")] * 2000)
    server.delay = 0.02
    with serving(server), remote(server) as backend:
        async with aclosing(backend.stream(ASKED)) as events:
            async for event in events:
                assert isinstance(event, TextDelta)
                break
        await wait_until_idle(server)


async def test_a_stopped_answer_ends_with_the_text_that_was_held_back() -> None:
    call = '{"index": 0, "function": {"name": "f", "arguments": "{"}}'
    server = FakeServer([said("A <tool"), said("", tool_calls=[json.loads(call)]), *[said("_")] * 2000])
    server.delay = 0.02
    with serving(server), remote(server) as backend:
        request = replace(ASKED, tools=(ToolSpec("f", "", {"type": "object"}),), stop=Stop())
        events = backend.stream(request)
        first = [await anext(events) for _ in range(3)]
        request.stop.set()
        rest = [event async for event in events]
        await wait_until_idle(server)
    assert text_of(first) == "A"
    text, called, finish = rest
    assert isinstance(text, TextDelta)
    assert text.text.startswith(" <tool")
    assert isinstance(called, ToolCalled)
    assert called.call.error
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.usage.completion_tokens) == ("stopped", 3)
    assert finish.provenance is not None


async def test_a_stop_before_the_first_token_ends_the_request_on_the_server() -> None:
    server = FakeServer([said("x")] * 2000)
    server.first_delay = 1.5
    request = replace(ASKED, stop=Stop())
    with serving(server), remote(server) as backend:
        reading = asyncio.create_task(events_of(backend, request))
        while not server.running:
            await asyncio.sleep(0.01)
        request.stop.set()
        [finish] = await asyncio.wait_for(reading, 1)
        assert isinstance(finish, Finish)
        assert (finish.reason, finish.usage.completion_tokens) == ("stopped", 0)
        await wait_until_idle(server)


async def test_closing_the_backend_ends_running_requests() -> None:
    server = FakeServer([said("x")])
    server.delay = 30.0
    with serving(server), remote(server) as backend:
        events = backend.stream(ASKED)
        await anext(events)
        backend.close()
        assert isinstance(await asyncio.wait_for(anext(events), 5), Finish)
        with pytest.raises(EngineClosedError):
            await anext(events)
        with pytest.raises(EngineClosedError):
            await events_of(backend)


async def test_fields_that_a_server_rejects_are_left_out_and_listed() -> None:
    def refuse(body: dict[str, Any]) -> tuple[int, Any] | None:
        unknown = [name for name in ("stream_options", "min_p") if name in body]
        return (422, {"detail": [{"loc": unknown[:1], "msg": "Extra inputs"}]}) if unknown else None

    server = FakeServer()
    server.refuse = refuse
    with serving(server), remote(server) as backend:
        events = await events_of(backend, asked(sampling=SamplingParams(temperature=1.0)))
        assert text_of(events) == "Hello world"
        assert finish_of(events).usage == Usage(0, 2)
        assert server.asked == 3
        assert server.bodies[-1]["top_k"] == 0  # the error did not name this field
        await events_of(backend, asked(sampling=SamplingParams(temperature=1.0)))
        assert server.asked == 4
        assert ("Left out", "min_p, stream_options") in [fact[:2] for fact in backend.status().facts]


async def test_a_field_that_the_error_does_not_name_is_sent_again() -> None:
    server = FakeServer()
    server.refuse = lambda body: (400, {"error": "bad request"}) if "min_p" in body else None
    with serving(server), remote(server) as backend:
        for requests in (2, 4):
            await events_of(backend, asked(sampling=SamplingParams(temperature=1.0)))
            assert server.asked == requests
        assert "Left out" not in [name for name, *_ in backend.status().facts]


@pytest.mark.parametrize("change", ["restart", "kind"])
async def test_a_changed_server_gets_all_fields_again(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    monkeypatch.setattr(endpoints, "DOWN_SECONDS", 0.05)
    monkeypatch.setattr(endpoints, "UP_SECONDS", 0.05)

    def refuse(body: dict[str, Any]) -> tuple[int, Any] | None:
        unknown = [name for name in ("logprobs", "min_p") if name in body]
        return (422, {"detail": f"Unexpected keys in the request: {unknown}"}) if unknown else None

    server = FakeServer([said("Hi", reasoning_content="Hm"), ended()])
    server.refuse = refuse
    with serving(server), remote(server) as backend:
        await events_of(backend, asked(sampling=SamplingParams(temperature=1.0)))
        with pytest.raises(InvalidRequestError):
            await events_of(backend, asked(sampling=SamplingParams(logprobs=2)))
        (one,) = backend.endpoints.all
        assert (one.refused, one.parses_reasoning) == (frozenset({"min_p"}), True)
        assert "returns no log probabilities" in str(backend.status().unable_to("log probabilities"))
        server.refuse = lambda body: None
        if change == "restart":
            server.kill()
            wait_for(backend, "failed")
            server.start()
            wait_for(backend, "ready")
        else:
            server.models = [{**server.models[0], "owned_by": "sglang"}]
            deadline = time.monotonic() + 10
            while one.kind != "SGLang":
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
        assert (one.refused, one.parses_reasoning) == (frozenset(), False)
        assert not backend.status().unable_to("log probabilities")
        await events_of(backend, asked(sampling=SamplingParams(temperature=1.0)))
        assert "min_p" in server.bodies[-1]


async def test_a_rejected_value_does_not_disable_the_feature() -> None:
    server = FakeServer()
    server.refuse = lambda body: (400, {"error": "top_logprobs: at most 5"}) if "logprobs" in body else None
    with serving(server), remote(server) as backend:
        with pytest.raises(InvalidRequestError, match="at most 5"):
            await events_of(backend, asked(sampling=SamplingParams(logprobs=9)))
        assert not backend.status().unable_to("log probabilities")


async def test_a_field_that_the_visitor_set_is_never_left_out() -> None:
    server = FakeServer()
    server.refuse = lambda body: (400, {"error": {"message": "top_k is unknown"}}) if "top_k" in body else None
    with serving(server), remote(server) as backend:
        with pytest.raises(InvalidRequestError, match="top_k is unknown"):
            await events_of(backend, asked(sampling=SamplingParams(temperature=1.0, top_k=5)))
        await events_of(backend, asked(sampling=SamplingParams(temperature=1.0)))


@pytest.mark.parametrize(
    ("status", "answer", "kind", "text"),
    [
        (401, {"error": {"message": "no"}}, RemoteError, "--backend-key"),
        (404, {"error": {"message": "The model `x` does not exist."}}, RemoteError, "does not exist. Choose another"),
        (404, "<!doctype html><p>no</p>", RemoteError, "a web page"),
        (502, "<html><h1>Bad Gateway</h1></html>", RemoteError, "failed (502): The server sent a web page"),
        (429, {"error": "slow down"}, RemoteBusyError, "busy: slow down. Try again"),
        (503, {"detail": "loading"}, RemoteBusyError, "busy"),
        (500, {"error": {"message": "x" * 999}}, RemoteError, "x…"),
        (400, {"error": {"message": "bad\nthing"}}, InvalidRequestError, "rejects the request: bad thing"),
        (400, {"error": {"message": TOO_LONG.format(10, 30, 20, 10)}}, ContextOverflowError, "20 tokens"),
        (400, {"message": "context size", "n_prompt_tokens": 30, "n_ctx": 20}, ContextOverflowError, "20 including"),
        (400, {"message": TOO_LONG.format(100, 120, 20, 100)}, InvalidRequestError, "lower Max new tokens"),
        (200, "<html>a page</html>", RemoteDownError, "before it was complete"),
    ],
)  # fmt: skip
async def test_errors_of_a_server_say_what_to_do(
    status: int, answer: Any, kind: type[GraniteDemoError], text: str
) -> None:
    server = FakeServer(key="secret-key")
    server.refuse = lambda body: (status, answer)
    with serving(server), remote(server, key="secret-key") as backend:
        raised = await failure_of(backend)
    assert isinstance(raised, kind)
    assert text in raised.user_text
    assert "<" not in raised.user_text
    assert len(raised.user_text) < 600


@pytest.mark.parametrize(
    ("chunk", "nothing"),
    [
        ("data: {oops\n\n", False),
        ("data: 5\n\n", True),
        ('data: {"choices": 5}\n\n', True),
        ('data: {"choices": [{"delta": {"content": 5}}]}\n\n', True),
        ('data: {"choices": [{"delta": {"tool_calls": [5]}, "logprobs": {"content": 5}}], "usage": 5}\n\n', True),
    ],
)
async def test_malformed_chunks_raise_or_are_ignored(chunk: str, nothing: bool) -> None:
    server = FakeServer([chunk, said("Hello"), ended()])
    with serving(server), remote(server) as backend:
        if nothing:
            assert text_of(await events_of(backend)) == "Hello"
        else:
            assert "does not answer like OpenAI's API" in (await failure_of(backend)).user_text


async def test_an_error_within_the_stream() -> None:
    server = FakeServer([said("Hello"), {"error": {"message": "CUDA is gone"}}])
    with serving(server), remote(server) as backend:
        events = backend.stream(ASKED)
        await anext(events)
        with pytest.raises(RemoteError, match=r"cut off\. The text so far is kept\..*CUDA is gone"):
            _ = [event async for event in events]


async def test_a_lost_connection_raises_without_a_new_try_after_the_first_token() -> None:
    one, other = FakeServer(), FakeServer()
    one.drop_after = other.drop_after = 1
    with serving(one, other), remote(one, other) as backend:
        events = backend.stream(ASKED)
        assert await anext(events) == TextDelta("Hello", 1)
        with pytest.raises(RemoteError, match="cut off"):
            _ = [event async for event in events]
    assert one.asked + other.asked == 1


async def test_an_answer_without_an_end_is_cut_off() -> None:
    server = FakeServer([said("Hello")])
    with serving(server), remote(server) as backend:
        events = backend.stream(ASKED)
        await anext(events)
        with pytest.raises(RemoteError, match="cut off"):
            _ = [event async for event in events]
    assert server.asked == 1


@pytest.mark.parametrize("fault", ["dropped", "failed", "busy", "gone", "unknown"])
async def test_another_server_answers_before_the_first_token(fault: str) -> None:
    good, bad = FakeServer(), FakeServer([said("", role="assistant"), said("never")])
    bad.drop_after = 1
    answers: dict[str, tuple[int, Any]] = {"failed": (500, {}), "busy": (429, {}), "unknown": (404, {})}
    bad.refuse = lambda body: answers.get(fault)
    with serving(good, bad), remote(bad, good) as backend:
        if fault == "gone":
            bad.kill()
        for _ in range(3):
            assert text_of(await events_of(backend)) == "Hello world"
        if fault == "gone":
            assert not backend.endpoints.all[0].up, "known without another probe"
    assert good.asked == 3


async def test_a_single_server_that_lost_the_connection_is_tried_again_once() -> None:
    server = FakeServer()
    server.drop_after = 0
    with serving(server), remote(server) as backend:
        with pytest.raises(RemoteDownError, match="does not answer"):
            await events_of(backend)
        assert server.asked == 2
        server.refuse = lambda body: (429, {})
        with pytest.raises(RemoteBusyError):
            await events_of(backend)
        assert server.asked == 3


async def test_a_slow_server_is_not_tried_twice_and_is_not_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "CHUNK_SECONDS", 0.3)
    slow, good = FakeServer(), FakeServer()
    slow.first_delay = 2.0
    with serving(slow), remote(slow) as backend:
        with pytest.raises(RemoteBusyError, match="did not answer in time"):
            await events_of(backend)
        assert backend.status().stage == "ready"
    assert slow.asked == 1
    with serving(slow, good), remote(slow, good) as backend:
        assert text_of(await events_of(backend)) == "Hello world"
        assert backend.endpoints.all[0].up
    assert (slow.asked, good.asked) == (2, 1)


async def test_a_server_that_does_not_accept_a_connection_in_time_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "CONNECT_SECONDS", 0.3)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]  # they fill its queue
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        listed = endpoints.Endpoints(endpoints.parse_urls(f"http://127.0.0.1:{address[1]}"))
        try:
            with pytest.raises(RemoteDownError):
                await events_of(RemoteBackend(listed, "mine"))
        finally:
            for one in waiting:
                one.close()
            listed.close()


async def test_servers_take_turns() -> None:
    one, other = FakeServer(), FakeServer()
    with serving(one, other), remote(one, other) as backend:
        for _ in range(6):
            await backend.token_ids(asked())  # does not use up a turn
            await events_of(backend)
    assert (one.asked, other.asked) == (3, 3)


async def test_a_request_goes_to_a_server_that_has_the_model() -> None:
    one, other = FakeServer(), FakeServer()
    other.models = [{"id": "another"}]
    with serving(one, other), remote(one, other) as backend:
        assert [choice.name for choice in backend.choices()] == ["auto", "granite-4.0-micro", "another"]
        for _ in range(3):
            await events_of(backend, asked(model=LoadOptions("another")))
        backend.select(LoadOptions("another"))
        await events_of(backend)
        assert backend.status().model == "another"
        with pytest.raises(InvalidRequestError, match="Precision"):
            backend.select(LoadOptions("another", quantization="nf4"))
        backend.select(LoadOptions("auto"))
        assert backend.status().model == "granite-4.0-micro"
    assert (one.asked, other.asked) == (0, 4)


async def test_the_oldest_turns_are_dropped_if_the_server_reports_an_overflow() -> None:
    def refuse(body: dict[str, Any]) -> tuple[int, Any] | None:
        return (400, {"error": {"message": "This exceeds the context size."}}) if len(body["messages"]) > 4 else None

    turns = [Message(role, str(n)) for n in range(5) for role in ("user", "assistant")]
    messages = (Message("system", "S"), *turns, Message("user", "last"))
    server = FakeServer()
    server.refuse = refuse
    with serving(server), remote(server) as backend:
        events = await events_of(backend, GenerationRequest(messages, overflow="drop"))
        assert [event for event in events if isinstance(event, Dropped)] == [Dropped(10)]
        assert [turn["content"] for turn in server.bodies[-1]["messages"]] == ["S", "last"]
        with pytest.raises(InvalidRequestError, match="Shorten the prompt"):
            await events_of(backend, GenerationRequest(messages))


async def test_another_server_scores_a_text_if_one_is_down() -> None:
    one, other = FakeServer(), FakeServer()
    logprobs = {"tokens": ["A"], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}
    other.answer = one.answer = {"choices": [{"text": "A", "logprobs": logprobs}]}
    with serving(one, other), remote(one, other) as backend:
        one.kill()
        for _ in range(2):  # each server has a turn
            events = [event async for event in backend.score(ScoreRequest("A"))]
            assert isinstance(events[-1], ScoreSummary)
    assert other.asked == 2


async def test_scoring_with_an_echo() -> None:
    server = FakeServer()
    logprobs = {
        "tokens": ["A", "b", "c"],
        "token_logprobs": [None, -1.0, -5.0],
        "top_logprobs": [None, {"x": -0.5, "b": -1.0}, {}],
        "text_offset": [0, 1, 2],
    }
    server.answer = {"choices": [{"text": "Abc", "logprobs": logprobs}]}
    server.refuse = lambda body: (400, {"error": "max_tokens must be 1"}) if body["max_tokens"] == 0 else None
    with serving(server), remote(server) as backend:
        events = [event async for event in backend.score(ScoreRequest("Ab", alternatives=2))]
    assert isinstance(events[0], ScoredToken)
    assert events[0].logprob is None
    assert isinstance(events[1], ScoredToken)
    assert [one.text for one in events[1].alternatives] == ["x", "b"]
    assert isinstance(events[2], ScoreSummary)
    assert (events[2].tokens, events[2].logprob) == (2, -1.0)


async def test_missing_features_raise_with_the_reason() -> None:
    server = FakeServer()
    server.answer = {"choices": [{"text": "Ab"}]}
    with serving(server), remote(server) as backend:
        with pytest.raises(InvalidRequestError, match="cannot score"):
            await anext(backend.score(ScoreRequest("Ab")))
        assert backend.status().unable_to("scoring")
        assert backend.status().unable_to("comparing precisions")
        with pytest.raises(InvalidRequestError, match="without --backend"):
            await anext(backend.compare(CompareRequest("A", LoadOptions("a"), LoadOptions("b"))))
        with pytest.raises(InvalidRequestError, match="another server"):
            backend.unload()


async def test_the_length_of_a_prompt_if_the_server_tokenizes() -> None:
    server = FakeServer()
    with serving(server), remote(server) as backend:
        assert await backend.inspect(ASKED) is None
    server.tokenized = {"count": 12, "max_model_len": 4096, "tokens": [1] * 12}
    with serving(server), remote(server) as backend:
        view = await backend.inspect(ASKED)
        assert view is not None
        assert (view.tokens, view.context_length) == (12, 4096)
        assert await backend.inspect(ASKED, parts=True) is None


async def test_a_slow_token_count_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "SECONDS", 0.2)
    server = FakeServer()
    server.tokenized, server.first_delay = {"count": 12, "max_model_len": 4096}, 20.0
    with serving(server), remote(server) as backend:
        assert await asyncio.wait_for(backend.inspect(ASKED), 10) is None


def test_the_status_follows_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "DOWN_SECONDS", 0.05)
    monkeypatch.setattr(endpoints, "UP_SECONDS", 0.05)
    server = FakeServer()
    server.start()
    with remote(server) as backend:
        status = backend.status()
        assert (status.stage, status.title, status.context_length) == ("ready", "granite-4.0-micro", 4096)
        assert ("Device", f"vLLM at {server.url}") in [fact[:2] for fact in status.facts]
        server.kill()
        wait_for(backend, "failed")
        assert "does not answer" in backend.status().detail
        with pytest.raises(RemoteDownError, match="does not answer"):
            asyncio.run(events_of(backend))
        server.start()
        wait_for(backend, "ready")
        assert text_of(asyncio.run(events_of(backend))) == "Hello world"
        server.kill()


def wait_for(backend: RemoteBackend, stage: str) -> None:
    deadline = time.monotonic() + 10
    while backend.status().stage != stage:
        assert time.monotonic() < deadline, backend.status()
        time.sleep(0.02)


def test_a_wrong_key_fails_and_is_never_shown() -> None:
    server = FakeServer(key="right")
    with serving(server), remote(server, key="wrong-secret") as backend:
        status = backend.status()
        assert status.stage == "failed"
        assert "--backend-key" in status.detail
        assert "wrong-secret" not in repr((status, backend.endpoints.all))
    assert not server.bodies


@pytest.mark.parametrize("models", ["<html>", "[]", '{"data": 5}', '{"data": [5]}', "{}"])
def test_a_malformed_list_of_models_fails(models: str) -> None:
    server = FakeServer()
    server.models = models
    with serving(server), remote(server) as backend:
        assert backend.status().stage == "failed"
        assert "OpenAI's API" in backend.status().detail


def test_a_server_without_a_model_and_one_without_the_named_model() -> None:
    server = FakeServer()
    with serving(server), remote(server, model="mine") as backend:
        assert backend.status().stage == "ready"
        assert "does not list the model mine. It has: granite-4.0-micro" in backend.status().notice
    server.models = []
    with serving(server), remote(server) as backend:
        assert "lists no model" in backend.status().detail


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_without_a_list_answers_with_a_named_model(status: int) -> None:
    server = FakeServer()
    server.models_status = status
    with serving(server), remote(server) as backend:
        assert "--backend-model" in backend.status().detail
        backend.select(LoadOptions("mine"))
        assert backend.status().stage == "ready"
        assert text_of(asyncio.run(events_of(backend))) == "Hello world"
        assert server.bodies[0]["model"] == "mine"


def test_a_host_name_that_cannot_be_found() -> None:
    listed = endpoints.Endpoints(endpoints.parse_urls("http://no-such-host.invalid:1"))
    with pytest.raises(RemoteDownError, match="cannot be found|does not answer"):
        RemoteBackend(listed).wait_until_ready()
    listed.close()


def test_a_server_without_tls_at_an_https_address() -> None:
    server = FakeServer()
    with serving(server):
        listed = endpoints.Endpoints(endpoints.parse_urls(server.url.replace("http", "https")))
        with pytest.raises(RemoteDownError, match="certificate"):
            RemoteBackend(listed).wait_until_ready()
        listed.close()


def test_no_model_is_loaded_here() -> None:
    server = FakeServer()
    code = (
        "import sys, granite_demo.cli.main\n"
        "sys.argv = ['granite-demo', 'complete', 'Hi', '--url', '{}', '--json']\n"
        "try:\n    granite_demo.cli.main.main()\nfinally:\n"
        "    print([name for name in ('torch', 'transformers', 'gradio') if name in sys.modules])"
    )
    with serving(server):
        run = subprocess.run(
            [sys.executable, "-c", code.format(server.url)], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
    answer, modules = run.stdout.strip().splitlines()
    assert json.loads(answer)["text"] == "Hello world", run.stderr
    assert modules == "[]"
