"""Tests for the conversion of tokens to events, with a real tokenizer."""

import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import replace
from os.path import commonprefix
from types import SimpleNamespace
from typing import Any

import pytest

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.backends.response_stream import answer_events
from granite_demo.errors import EngineError
from granite_demo.outputs.dialects import DIALECTS
from granite_demo.outputs.tool_calls import CUT_OFF
from granite_demo.types.events import (
    Appendix,
    Citation,
    Finish,
    Provenance,
    Queued,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
    ToolCalled,
)
from granite_demo.types.logprobs import Token
from granite_demo.types.messages import Document, Message, ToolCall, ToolSpec
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams
from tests.bytetokens import byte_tokenizer
from tests.fakes import FakeEngine

TEMPLATES = {name: " ".join(row.signs) for name, row in DIALECTS.items()}
END = "<|end_of_text|>"
CALL = '{"name": "f", "arguments": {"x": "é"}}'
CALLED = ToolCalled(ToolCall("f", '{"x": "é"}'))
TOOL = ToolSpec("f", "A tool.", {"type": "object", "properties": {"x": {"type": "string"}}})
CITES = ["<|start_of_cite|>", "<|end_of_cite|>", "<|start_of_plugin|>"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(CITES, special_tokens=True)
    return tokenizer


class Answering:
    """Answers in one dialect with scripted text, token by token."""

    def __init__(self, tokenizer: Any, dialect: str, text: str, prompt: str = "Hi") -> None:
        tokenizer.chat_template = TEMPLATES[dialect]
        self.prompt_ids = self.encode(tokenizer, prompt)
        self.ids = self.encode(tokenizer, text)
        self.engine = FakeEngine(self.ids)
        loaded: Any = SimpleNamespace(tokenizer=tokenizer, eos_ids={tokenizer.convert_tokens_to_ids(END)})
        self.ready = ReadyModel(loaded, self.engine)

    @staticmethod
    def encode(tokenizer: Any, text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return ids

    async def events(
        self, limit: int = 10_000, stop: Sequence[str] = (), written: tuple[int, ...] = (), **options: Any
    ) -> list[StreamEvent]:
        return [event async for event in self.stream(asking(limit, stop, written=written), **options)]

    def stream(self, request: GenerationRequest, **options: Any) -> AsyncGenerator[StreamEvent]:
        return answer_events(self.ready, request, self.prompt_ids, time.perf_counter(), **options)


def asking(limit: int = 10_000, stop: Sequence[str] = (), **values: Any) -> GenerationRequest:
    """Return a request, by default with a tool."""
    sampling = SamplingParams(max_tokens=limit, stop=tuple(stop))
    if "prompt" not in values:
        documents = (Document("A", "B"),)
        values = {"messages": (Message("user", "Hi"),), "tools": (TOOL,), "documents": documents, **values}
    return GenerationRequest(sampling=sampling, **values)


def shown(events: Iterable[StreamEvent]) -> list[Any]:
    """Return the events with texts joined, without counts and without the Finish."""
    seen: list[Any] = []
    for event in events:
        if isinstance(event, TextDelta | ReasoningDelta):
            kind = "text" if isinstance(event, TextDelta) else "thinking"
            if seen and isinstance(seen[-1], tuple) and seen[-1][0] == kind:
                seen[-1] = (kind, seen[-1][1] + event.text)
            elif event.text:
                seen.append((kind, event.text))
        elif not isinstance(event, Finish):
            seen.append(event)
    return seen


def joined(seen: list[Any], kind: str) -> str:
    return "".join(part[1] for part in seen if isinstance(part, tuple) and part[0] == kind)


def finish_of(events: list[StreamEvent]) -> Finish:
    assert isinstance(events[-1], Finish)
    assert sum(isinstance(event, Finish) for event in events) == 1
    return events[-1]


SCRIPTS = [
    ("plain", "Hi", "<think>A</think>", [("text", "<think>A</think>")], "stop"),
    (
        "3.2",
        "Hi",
        "Here is my thought process: A Here is my response: B",
        [("thinking", "A"), ("text", "B")],
        "stop",
    ),
    ("3.2", "Hi", f"<|tool_call|>[{CALL}]", [CALLED], "tool_calls"),
    ("3.3", "Hi", "<think>A é</think>\n<response>B</response>", [("thinking", "A é"), ("text", "B")], "stop"),
    (
        "3.3",
        "Hi",
        'A <|start_of_cite|>{document_id: 1}é b<|end_of_cite|>.\n<|start_of_plugin|>{"id": "citation"}\n1: "E"',
        [("text", "A é b"), Citation("1", 2, 5), ("text", "."), Appendix("citations", '1: "E"')],
        "stop",
    ),
    ("4.0", "Hi", f"A\n<tool_call>\n{CALL}\n</tool_call>", [("text", "A"), CALLED], "tool_calls"),
    (
        "4.0",
        "Hi",
        "<tool_call>{}</tool_call>",
        [ToolCalled(ToolCall("", "{}", "The call has no name."))],
        "stop",
    ),
    ("4.2", "<think>\n", "A\n</think>\nB", [("thinking", "A"), ("text", "B")], "stop"),
    ("4.2", "<think></think>", "A", [("text", "A")], "stop"),
    ("4.2", "say <think> now\n", "A", [("text", "A")], "stop"),
    (
        "4.2",
        "<think>\n",
        "A</think><tool_call>\n<function=f>\n<parameter=x>\né\n</parameter>\n</function>\n</tool_call>",
        [("thinking", "A"), CALLED],
        "tool_calls",
    ),
    (
        "4.2",
        "<think>\n",
        "A\n<tool_call>\n<function=f>\n<parameter=x>\né\n</parameter>\n</function>\n</tool_call>\n</think>\nB",
        [("thinking", "A"), CALLED, ("text", "B")],
        "tool_calls",
    ),
]


@pytest.mark.parametrize(("dialect", "prompt", "text", "seen", "reason"), SCRIPTS)
async def test_an_answer_of_each_dialect(
    tokenizer: Any, dialect: str, prompt: str, text: str, seen: list[Any], reason: str
) -> None:
    answering = Answering(tokenizer, dialect, text + END + "never", prompt)
    events = await answering.events()
    finish = finish_of(events)
    assert shown(events) == seen
    assert finish.reason == reason
    assert finish.token_ids == tuple(Answering.encode(tokenizer, text + END))
    assert finish.usage.completion_tokens == len(finish.token_ids)


@pytest.mark.parametrize(("dialect", "prompt", "text", "seen", "reason"), SCRIPTS)
async def test_every_token_can_be_the_last(
    tokenizer: Any, dialect: str, prompt: str, text: str, seen: list[Any], reason: str
) -> None:
    answering = Answering(tokenizer, dialect, text, prompt)
    for limit in range(1, len(answering.ids)):
        events = await answering.events(limit)
        finish = finish_of(events)
        counts = [event.completion_tokens for event in events if isinstance(event, TextDelta | ReasoningDelta)]
        assert (finish.reason, finish.usage.completion_tokens) == ("length", limit)
        # Each token has one delta or more, so that the count is current.
        assert sorted(set(counts)) == list(range(1, limit + 1))
        assert counts == sorted(counts)
        # A part of the answer shows the beginning of the full answer, and at most a part of a marker after it.
        for kind in ("thinking", "text"):
            part, full = joined(shown(events), kind), joined(seen, kind)
            rest = part.removeprefix(commonprefix([part, full])).strip()
            assert any(marker.strip().startswith(rest) for marker in ("", *DIALECTS[dialect].markers))
    assert answering.engine.closed_streams == len(answering.ids) - 1


async def test_thinking_is_counted_with_its_markers(tokenizer: Any) -> None:
    thinking, rest = "<think>ABC</think>", "\n<response>DE</response>"
    finish = finish_of(await Answering(tokenizer, "3.3", thinking + rest + END).events())
    assert finish.usage.reasoning_tokens == len(Answering.encode(tokenizer, thinking))
    assert 0 < finish.timings.reasoning < finish.timings.total
    # A marker in the prompt is not a token of the answer.
    finish = finish_of(await Answering(tokenizer, "4.2", "ABC</think>DE", "<think>\n").events())
    assert finish.usage.reasoning_tokens == len("ABC") + 1
    finish = finish_of(await Answering(tokenizer, "3.2", "Here is my dog", "<think>\n").events())
    assert (finish.usage.reasoning_tokens, finish.timings.reasoning) == (0, 0)


async def test_tokens_without_text_count_for_thinking_or_text(tokenizer: Any) -> None:
    events = await Answering(tokenizer, "4.2", "A \n</think>B\n<tool_call>", "<think>\n").events(limit=6)
    assert events[:-1] == [
        ReasoningDelta("A", 1),
        ReasoningDelta("", 2),
        ReasoningDelta("", 3),
        TextDelta("", 4),
        TextDelta("B", 5),
        TextDelta("", 6),
        TextDelta("\n", 6),
    ]


async def test_a_call_before_the_limit_does_not_change_the_reason(tokenizer: Any) -> None:
    events = await Answering(tokenizer, "4.0", f"<tool_call>{CALL}</tool_call>").events()
    assert shown(events) == [CALLED]
    assert finish_of(events).reason == "length"


async def test_thinking_that_never_ends_is_all_thinking(tokenizer: Any) -> None:
    events = await Answering(tokenizer, "4.2", "ABC", "<think>\n").events()
    assert shown(events) == [("thinking", "ABC")]
    assert finish_of(events).usage.reasoning_tokens == 3


async def test_stop_strings_end_only_the_visible_text(tokenizer: Any) -> None:
    text = "STOP </think>A<tool_call>" + CALL.replace("é", "STOP") + "</tool_call>B STOP C"
    answering = Answering(tokenizer, "4.2", text + END, "<think>\n")
    events = await answering.events(stop=("STOP",))
    assert shown(events) == [
        ("thinking", "STOP"),
        ("text", "A"),
        ToolCalled(ToolCall("f", '{"x": "STOP"}')),
        ("text", "B "),
    ]
    finish = finish_of(events)
    assert finish.reason == "stop"
    assert finish.token_ids == tuple(answering.ids[: len(finish.token_ids)])
    assert finish.usage.completion_tokens == len(Answering.encode(tokenizer, text.removesuffix(" C")))
    assert answering.engine.closed_streams == 1


async def test_text_that_is_held_back_does_not_follow_a_stop_string(tokenizer: Any) -> None:
    events = await Answering(tokenizer, "4.0", "A STOP\n<tool").events(stop=("STOP",))
    assert shown(events) == [("text", "A ")]
    # Whitespace is held back for a marker, so a stop string of whitespace is found at the end.
    events = await Answering(tokenizer, "4.0", "A\n\n").events(stop=("\n\n",))
    assert shown(events) == [("text", "A")]
    assert finish_of(events).reason == "stop"


async def test_text_before_a_call_is_shown_before_it(tokenizer: Any) -> None:
    text = f"A EN<tool_call>{CALL}</tool_call>D"
    events = await Answering(tokenizer, "4.0", text).events(stop=("END",))
    assert shown(events) == [("text", "A EN"), CALLED, ("text", "D")]


async def test_a_call_does_not_follow_a_stop_string_that_ends_before_it(tokenizer: Any) -> None:
    # "AB" can be the beginning of the longer stop string until the call.
    events = await Answering(tokenizer, "4.0", f"AB<tool_call>{CALL}</tool_call>{END}").events(stop=("ABX", "B"))
    assert shown(events) == [("text", "A")]
    assert finish_of(events).reason == "stop"


async def test_a_citation_waits_for_its_text_and_is_cut_with_it(tokenizer: Any) -> None:
    text = "<|start_of_cite|>{document_id: 1}AB EN<|end_of_cite|>"
    events = await Answering(tokenizer, "3.3", f"{text}ough").events(stop=("END",))
    assert shown(events) == [("text", "AB ENo"), Citation("1", 0, 5), ("text", "ugh")]
    events = await Answering(tokenizer, "3.3", f"{text}D").events(stop=("END",))
    assert shown(events) == [("text", "AB "), Citation("1", 0, 3)]


async def test_a_citation_of_text_after_a_stop_string_is_dropped(tokenizer: Any) -> None:
    text = "A E<|start_of_cite|>{document_id: 1}N<|end_of_cite|>D"
    assert shown(await Answering(tokenizer, "3.3", text).events(stop=("END",))) == [("text", "A ")]
    text = "<|start_of_cite|>{document_id: 1}AB END D<|end_of_cite|>"
    assert shown(await Answering(tokenizer, "3.3", text).events(stop=("END",))) == [("text", "AB ")]


async def test_raw_text_is_not_parsed(tokenizer: Any) -> None:
    text = f" <think>A</think> <|tool_call|><tool_call>{CALL}</tool_call>"
    answering = Answering(tokenizer, "3.3", text, "<think>\n")
    events = [event async for event in answering.stream(asking(prompt="<think>\n"))]
    assert shown(events) == [("text", text.replace("<|tool_call|>", ""))]
    assert finish_of(events).usage.reasoning_tokens == 0


@pytest.mark.parametrize("dialect", ["3.2", "3.3", "4.0", "4.2"])
async def test_text_is_not_parsed_as_a_call_without_tools(tokenizer: Any, dialect: str) -> None:
    text = "A " + "".join(f"{marker}{CALL}</tool_call> B " for marker in DIALECTS[dialect].of("call_open")) + "D"
    answering = Answering(tokenizer, dialect, text)
    events = [event async for event in answering.stream(asking(tools=()))]
    assert shown(events) == [("text", text)]


async def test_tools_that_were_called_before_can_be_called(tokenizer: Any) -> None:
    messages = (Message("user", "Hi"), Message("assistant", "", tool_calls=(CALLED.call,)), Message("tool", "1"))
    answering = Answering(tokenizer, "4.0", f"A <tool_call>{CALL}</tool_call>")
    events = [event async for event in answering.stream(asking(tools=(), messages=messages))]
    assert shown(events) == [("text", "A"), CALLED]


async def test_an_argument_of_the_type_string_remains_a_string(tokenizer: Any) -> None:
    text = "<tool_call><function=f><parameter=x>42</parameter></function></tool_call>"
    events = await Answering(tokenizer, "4.2", text).events()
    assert shown(events) == [ToolCalled(ToolCall("f", '{"x": "42"}'))]


async def test_the_finish_has_the_provenance(tokenizer: Any) -> None:
    made_by = Provenance("model")
    events = await Answering(tokenizer, "plain", "A").events(provenance=made_by)
    assert finish_of(events).provenance is made_by


async def test_queued_events_are_forwarded_and_not_counted(tokenizer: Any) -> None:
    answering = Answering(tokenizer, "4.2", "AB", "<think>\n")
    answering.engine.queued = [Queued(1)]
    events = await answering.events()
    assert events[0] == Queued(1)
    assert finish_of(events).usage.reasoning_tokens == 2


async def test_a_stream_can_be_closed_at_any_event(tokenizer: Any) -> None:
    answering = Answering(tokenizer, "3.3", SCRIPTS[4][2])
    total = len(await answering.events())
    for position in range(total):
        stream = answering.stream(asking())
        for _ in range(position):
            await anext(stream)
        await stream.aclose()
        assert answering.engine.running == 0


@pytest.mark.parametrize(("dialect", "prompt", "text", "seen", "reason"), SCRIPTS)
async def test_an_answer_that_is_stopped_anywhere_ends_with_the_text_held_back(
    tokenizer: Any, dialect: str, prompt: str, text: str, seen: list[Any], reason: str
) -> None:
    answering = Answering(tokenizer, dialect, text, prompt)
    position = 1
    while True:
        request = asking()
        stream = answering.stream(request, provenance=Provenance("model"))
        first = [await anext(stream, None) for _ in range(position)]
        if first[-1] is None:
            break
        request.stop.set()
        events = [event for event in first if event] + [event async for event in stream]
        finish = finish_of(events)
        count = finish.usage.completion_tokens
        assert finish.token_ids == tuple(answering.ids[:count])
        assert (finish.provenance, finish.seed) == (Provenance("model"), None)
        if count < len(answering.ids):
            assert finish.reason == "stopped"
            assert shown(events) == shown(await answering.events(count))
        assert answering.engine.running == 0
        position += 1


@pytest.mark.parametrize(("dialect", "prompt", "text", "seen", "reason"), SCRIPTS)
async def test_a_continued_answer_equals_the_full_one_wherever_it_was_cut(
    tokenizer: Any, dialect: str, prompt: str, text: str, seen: list[Any], reason: str
) -> None:
    full_answer = await Answering(tokenizer, dialect, text, prompt).events()
    ids = finish_of(full_answer).token_ids
    for cut in range(1, len(ids)):
        answering = Answering(tokenizer, dialect, text, prompt)
        answering.engine.token_ids = answering.ids[cut:]
        first, answering.prompt_ids = answering.prompt_ids, [*answering.prompt_ids, *ids[:cut]]
        events = await answering.events(written=tuple(ids[:cut]))
        assert shown(events) == shown(full_answer)
        finish = finish_of(events)
        assert (finish.token_ids, finish.reason) == (ids, finish_of(full_answer).reason)
        assert finish.usage == finish_of(full_answer).usage
        assert (finish.usage.prompt_tokens, finish.timings.written) == (len(first), cut)
        assert answering.engine.prompts == [[*first, *ids[:cut]]]


async def test_an_answer_that_fails_yields_the_text_held_back_before_the_error(tokenizer: Any) -> None:
    answering = Answering(tokenizer, "4.0", 'A\n<tool_call>\n{"name": "f"')
    answering.engine.error = EngineError("No more memory.")
    events: list[StreamEvent] = []
    with pytest.raises(EngineError):
        async for event in answering.stream(asking()):
            events.append(event)
    assert shown(events) == [("text", "A"), ToolCalled(ToolCall("f", '{"name": "f"', CUT_OFF))]
    assert (finish_of(events).reason, finish_of(events).token_ids) == ("stopped", tuple(answering.ids))


async def test_an_answer_that_fails_before_its_first_token_only_raises(tokenizer: Any) -> None:
    answering = Answering(tokenizer, "4.0", "")
    answering.engine.token_ids, answering.engine.error = [], EngineError("No more memory.")
    with pytest.raises(EngineError):
        await anext(answering.stream(asking()))


async def test_an_answer_that_is_stopped_in_the_queue_has_its_seed_and_provenance(tokenizer: Any) -> None:
    answering = Answering(tokenizer, "4.0", "A")
    answering.engine.queued = [Queued(1)]
    request = replace(asking(), sampling=SamplingParams(temperature=1.0, seed=7, max_tokens=9))
    stream = answering.stream(request, provenance=Provenance("model"))
    assert await anext(stream) == Queued(1)
    request.stop.set()
    [finish] = [event async for event in stream]
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.seed, finish.provenance) == ("stopped", 7, Provenance("model"))
    assert (finish.token_ids, finish.usage.completion_tokens) == ((), 0)


async def test_a_model_without_template_has_no_dialect(tokenizer: Any) -> None:
    answering = Answering(tokenizer, "3.3", "<think>A</think>")
    tokenizer.chat_template = None
    assert shown(await answering.events()) == [("text", "<think>A</think>")]


class EndlessThinker(FakeEngine):
    """Thinks until its prompt shows that the thinking is closed; then it answers."""

    def __init__(self, thought: int, closing: list[int], answer: list[int]) -> None:
        super().__init__([])
        self.thought, self.closing, self.answer = thought, closing, answer
        self.limits: list[int | None] = []

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, matcher: Any = None
    ) -> AsyncGenerator[Token | Queued]:
        closed = list(prompt_ids[-len(self.closing) :]) == self.closing
        self.token_ids = self.answer if closed else [self.thought] * 1000
        self.limits.append(sampling.max_tokens)
        async for token in super().generate(prompt_ids, sampling, matcher):
            yield token


@pytest.mark.parametrize(
    ("dialect", "prompt", "close"),
    [("4.2", "<think>\n", "\n</think>\n"), ("3.3", "<think>", "\n</think>\n<response>\n")],
)
async def test_a_budget_closes_endless_thinking_and_the_answer_follows(
    tokenizer: Any, dialect: str, prompt: str, close: str
) -> None:
    answering = Answering(tokenizer, dialect, "", prompt)
    closing, (thought,) = answering.encode(tokenizer, close), answering.encode(tokenizer, "A")
    engine = EndlessThinker(thought, closing, answering.encode(tokenizer, f"B{END}"))
    answering.ready = ReadyModel(answering.ready.loaded, engine)
    asked = asking(100)
    asked = replace(asked, sampling=replace(asked.sampling, thinking_token_budget=7))
    events = [event async for event in answering.stream(asked)]
    finish = finish_of(events)
    assert shown(events) == [("thinking", "A" * 7), ("text", "B")]
    assert finish.reason == "stop"
    assert finish.token_ids == (*[thought] * 7, *closing, *engine.answer)
    assert engine.prompts[1] == [*answering.prompt_ids, *[thought] * 7, *closing]
    assert engine.limits == [100, 100 - 7 - len(closing)]
    assert 7 <= finish.usage.reasoning_tokens <= 7 + len(closing)
    # Without a budget, or where the limit of tokens leaves no room, it thinks to its end.
    assert shown([event async for event in answering.stream(asking(20))]) == [("thinking", "A" * 20)]
    short = replace(asked, sampling=replace(asked.sampling, max_tokens=8))
    assert finish_of([event async for event in answering.stream(short)]).reason == "length"


async def test_a_budget_leaves_shorter_thinking_alone(tokenizer: Any) -> None:
    answering = Answering(tokenizer, "4.2", f"AB</think>DEFGH{END}", "<think>\n")
    asked = asking(100)
    asked = replace(asked, sampling=replace(asked.sampling, thinking_token_budget=5))
    events = [event async for event in answering.stream(asked)]
    assert shown(events) == [("thinking", "AB"), ("text", "DEFGH")]
    assert answering.engine.prompts == [answering.prompt_ids]
