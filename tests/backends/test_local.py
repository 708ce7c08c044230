"""Tests for the local backend: edge cases with fakes, complete answers with the sample model and its default engine."""

import asyncio
import copy
import json
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest

from granite_demo.backends.local import LocalBackend, fit_to_context
from granite_demo.backends.model_manager import ModelManager, ReadyModel
from granite_demo.engine.protocol import Engine
from granite_demo.errors import (
    ContextOverflowError,
    EngineError,
    InvalidRequestError,
    LoadCancelledError,
    ModelError,
    UnknownModelError,
)
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.outputs.structured_output import Matcher
from granite_demo.types.comparison import Comparing
from granite_demo.types.constraints import Constraint
from granite_demo.types.events import Dropped, Finish, Queued, ReasoningDelta, StreamEvent, TextDelta
from granite_demo.types.load_options import LoadOptions, Report
from granite_demo.types.logprobs import Token
from granite_demo.types.messages import Message, Switches
from granite_demo.types.model_status import Chosen, ModelStatus
from granite_demo.types.requests import CompareRequest, GenerationRequest
from granite_demo.types.sampling_params import SamplingParams
from tests.bytetokens import THINKS
from tests.fakes import PLACEMENT, SETUP, SOURCE, FakeEngine

OPTIONS = LoadOptions()


def backend_over(engine: Any, loaded: Any) -> LocalBackend:
    def load(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        return ReadyModel(loaded, engine)

    return LocalBackend(ModelManager(load), OPTIONS)


def chat(text: str, **sampling: Any) -> GenerationRequest:
    return GenerationRequest((Message("user", text),), sampling=SamplingParams(**sampling))


async def answer(backend: LocalBackend, request: GenerationRequest) -> tuple[str, Finish]:
    events = [event async for event in backend.stream(request)]
    finish = events.pop()
    assert isinstance(finish, Finish)
    assert all(isinstance(event, TextDelta) for event in events)
    return "".join(event.text for event in events if isinstance(event, TextDelta)), finish


@pytest.fixture
def sample(ready_sample: ReadyModel) -> LoadedModel:
    """The sample as a newcomer gets it, for a fake engine."""
    return ready_sample.loaded


@pytest.fixture
def engine(ready_sample: ReadyModel) -> Engine:
    """Its engine."""
    return ready_sample.engine


@pytest.fixture
def real(engine: Engine, sample: LoadedModel) -> LocalBackend:
    """A backend for the engine of the session. It is not closed, because other tests use the engine."""
    return backend_over(engine, sample)


async def test_the_sample_knows_a_capital(real: LocalBackend) -> None:
    text, finish = await answer(real, chat("What is the capital of Germany?", max_tokens=50))
    assert "Berlin" in text
    assert finish.reason == "stop"
    assert 0 < finish.timings.ttft <= finish.timings.total
    assert finish.usage.prompt_tokens > 10
    assert finish.seed is None


async def test_max_tokens_ends_with_length(real: LocalBackend) -> None:
    _, finish = await answer(real, chat("Tell me a story.", max_tokens=5))
    assert (finish.reason, finish.usage.completion_tokens) == ("length", 5)


async def test_an_answer_of_which_only_the_text_is_known_goes_on(real: LocalBackend) -> None:
    question = chat("What is the capital of Germany?", max_tokens=50)
    whole, _ = await answer(real, question)
    half = whole[: whole.index(" Berlin")]
    text, finish = await answer(real, replace(question, written_text=half))
    assert text == whole
    assert finish.timings.written > 1


async def test_a_stop_string_is_cut_exactly(real: LocalBackend) -> None:
    full, _ = await answer(real, chat("Count from one to ten in words.", max_tokens=24))
    middle = len(full) // 2
    stop = full[middle : middle + 7]
    text, finish = await answer(real, chat("Count from one to ten in words.", max_tokens=24, stop=(stop,)))
    assert text == full[: full.index(stop)]
    assert finish.reason == "stop"


async def test_a_seed_repeats_a_sampled_answer_and_is_in_the_finish(real: LocalBackend) -> None:
    request = chat("Tell me a story.", max_tokens=8, temperature=1.0)
    text, finish = await answer(real, request)
    assert finish.seed is not None
    again, _ = await answer(real, chat("Tell me a story.", max_tokens=8, temperature=1.0, seed=finish.seed))
    other, _ = await answer(real, chat("Tell me a story.", max_tokens=8, temperature=1.0, seed=finish.seed + 1))
    assert text == again
    assert text != other


async def test_completion_continues_raw_text(real: LocalBackend) -> None:
    text, _ = await answer(
        real, GenerationRequest(prompt="The capital of France is", sampling=SamplingParams(max_tokens=8))
    )
    assert "Paris" in text


async def test_a_context_overflow_raises_with_both_numbers(real: LocalBackend, sample: LoadedModel) -> None:
    with pytest.raises(ContextOverflowError, match=f"{sample.context_length:,}") as caught:
        await answer(real, GenerationRequest(prompt="word " * 9000))
    assert caught.value.prompt_tokens >= 9000
    assert f"{caught.value.prompt_tokens:,}" in caught.value.user_text


async def test_closing_the_stream_frees_the_engine(real: LocalBackend, engine: Engine) -> None:
    async with aclosing(real.stream(chat("Tell me a long story."))) as events:
        async for _ in events:
            break
    start = time.perf_counter()
    while engine.stats().running or engine.stats().waiting:
        await asyncio.sleep(0.01)
        assert time.perf_counter() - start < 1


async def test_a_stop_frees_the_engine_and_ends_the_answer_in_a_second(real: LocalBackend, engine: Engine) -> None:
    request = chat("Tell me a long story.")
    events: list[StreamEvent] = []
    async for event in real.stream(request):
        events.append(event)
        if len(events) == 3:
            start = time.perf_counter()
            request.stop.set()
    assert time.perf_counter() - start < 1
    finish = events[-1]
    assert isinstance(finish, Finish)
    assert (finish.reason, len(finish.token_ids)) == ("stopped", finish.usage.completion_tokens)
    while engine.stats().running or engine.stats().waiting:
        await asyncio.sleep(0.01)
        assert time.perf_counter() - start < 1


async def test_a_stop_ends_the_wait_for_a_model(sample: LoadedModel) -> None:
    def load(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        cancelled.wait(60)
        raise LoadCancelledError("The load was cancelled.")

    backend, request = LocalBackend(ModelManager(load), OPTIONS), chat("Hi")
    stream = asyncio.create_task(answer(backend, request))
    await until(backend, "loading")
    request.stop.set()
    text, finish = await asyncio.wait_for(stream, 5)
    assert (text, finish.reason, finish.token_ids) == ("", "stopped", ())
    backend.close()


def test_fit_to_context() -> None:
    assert fit_to_context(SamplingParams(), 90, 100).max_tokens == 10
    assert fit_to_context(SamplingParams(max_tokens=50), 90, 100).max_tokens == 10
    assert fit_to_context(SamplingParams(max_tokens=5), 90, 100).max_tokens == 5
    assert fit_to_context(SamplingParams(), 90, 100).seed is None
    assert fit_to_context(SamplingParams(temperature=1), 90, 100).seed is not None
    with pytest.raises(ContextOverflowError):
        fit_to_context(SamplingParams(), 100, 100)


def long_chat(overflow: Any = "drop", turns: int = 200) -> GenerationRequest:
    """Return a chat of ``turns`` exchanges.

    The default has some thousand tokens more than the context of the sample.
    """
    talk = [Message("user", "word " * 30), Message("assistant", "word " * 30)] * turns
    return GenerationRequest(
        (Message("system", "Be brief."), *talk, Message("user", "Hi")),
        overflow=overflow,
        sampling=SamplingParams(max_tokens=3),
    )


async def test_the_oldest_turns_are_dropped_and_the_event_comes_first(sample: LoadedModel) -> None:
    engine = FakeEngine(sample.tokenizer("yes", add_special_tokens=False).input_ids)
    backend = backend_over(engine, sample)
    request = long_chat()
    events = [event async for event in backend.stream(request)]
    dropped = events[0]
    assert isinstance(dropped, Dropped)
    assert 0 < dropped.messages < 400
    assert dropped.messages % 2 == 0
    [prompt] = engine.prompts
    assert sample.context_length - 100 < len(prompt) <= sample.context_length - 3
    assert "Be brief." in sample.tokenizer.backend_tokenizer.decode(prompt)
    view = await backend.inspect(request, parts=True)
    assert view is not None
    assert (view.dropped, view.tokens) == (dropped.messages, len(prompt))
    assert [token for part in view.parts for token, _ in part.tokens] == prompt


async def test_an_overflow_raises_unless_turns_can_be_dropped(sample: LoadedModel) -> None:
    backend = backend_over(FakeEngine([]), sample)
    with pytest.raises(ContextOverflowError):
        await answer(backend, long_chat("refuse"))
    view = await backend.inspect(long_chat("refuse"))
    assert view is not None
    assert view.tokens > view.context_length
    assert (view.dropped, view.parts) == (0, ())
    huge = GenerationRequest((Message("user", "word " * 9000),), overflow="drop")
    with pytest.raises(ContextOverflowError):
        await answer(backend, huge)


async def test_a_chat_that_fits_is_not_shortened(sample: LoadedModel) -> None:
    engine = FakeEngine(sample.tokenizer("yes", add_special_tokens=False).input_ids)
    events = [event async for event in backend_over(engine, sample).stream(long_chat(turns=2))]
    assert not any(isinstance(event, Dropped) for event in events)


async def test_a_prompt_is_inspected_as_it_is_sent(sample: LoadedModel) -> None:
    engine = FakeEngine([])
    backend = backend_over(engine, sample)
    assert await backend.inspect(chat("Hi")) is None  # nothing is loaded yet
    backend.wait_until_ready()
    for request in (chat("Hi"), GenerationRequest(prompt="The capital of France is")):
        view = await backend.inspect(request, parts=True)
        await answer(backend, request)
        assert view is not None
        assert [token for part in view.parts for token, _ in part.tokens] == engine.prompts[-1]
        assert (view.tokens, view.context_length) == (len(engine.prompts[-1]), sample.context_length)
        assert {part.origin for part in view.parts} >= {"user"}


async def test_a_finish_has_the_provenance(sample: LoadedModel) -> None:
    engine = FakeEngine([])
    backend = backend_over(engine, replace(sample, source=replace(sample.source, commit="abc")))
    _, chatted = await answer(backend, chat("Hi"))
    assert chatted.provenance is not None
    assert (chatted.provenance.model, chatted.provenance.revision) == ("sample", "abc")
    assert chatted.provenance.template_sha256 == sha256(sample.tokenizer.chat_template.encode()).hexdigest()
    ids = ",".join(str(token) for token in engine.prompts[0])
    assert chatted.provenance.prompt_sha256 == sha256(ids.encode()).hexdigest()
    assert dict(chatted.provenance.choices)["Engine"] == "fake"
    assert dict(chatted.provenance.choices)["Device"] == "cpu"
    _, completed = await answer(backend, GenerationRequest(prompt="Hi"))
    assert completed.provenance is not None
    assert completed.provenance.template_sha256 == ""


async def test_a_completion_is_raw_text(sample: LoadedModel) -> None:
    tokenizer = copy.deepcopy(sample.tokenizer)
    tokenizer.chat_template = f"{tokenizer.chat_template}{{# <think> <response> #}}"  # the markers of Granite 3.3
    text = "<think>hm</think><response>yes"
    engine = FakeEngine(tokenizer(text, add_special_tokens=False).input_ids)
    backend = backend_over(engine, replace(sample, tokenizer=tokenizer))
    assert (await answer(backend, GenerationRequest(prompt="Hi")))[0] == text
    events = [event async for event in backend.stream(chat("Hi"))]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "yes"


async def test_an_engine_error_is_raised_after_the_text_before_it(sample: LoadedModel) -> None:
    ids = sample.tokenizer("Hello there", add_special_tokens=False).input_ids
    engine = FakeEngine(ids, EngineError("broken"))
    seen = []
    with pytest.raises(EngineError, match="broken"):
        async for event in backend_over(engine, sample).stream(chat("Hi")):
            seen.append(event)
    assert "".join(event.text for event in seen if isinstance(event, TextDelta)) == "Hello there"
    assert engine.closed_streams == 1


async def test_queued_events_are_forwarded_and_are_not_tokens(sample: LoadedModel) -> None:
    engine = FakeEngine(sample.tokenizer("Hello there", add_special_tokens=False).input_ids)
    engine.queued = [Queued(1), Queued(0)]
    events = [event async for event in backend_over(engine, sample).stream(chat("Hi"))]
    assert events[:2] == engine.queued
    assert isinstance(events[-1], Finish)
    assert events[-1].usage.completion_tokens == len(engine.token_ids)


async def test_a_stop_string_closes_the_engine_stream(sample: LoadedModel) -> None:
    ids = sample.tokenizer("one two three four", add_special_tokens=False).input_ids
    engine = FakeEngine(ids)
    text, finish = await answer(backend_over(engine, sample), chat("Hi", stop=("three",)))
    assert (text, finish.reason) == ("one two ", "stop")
    assert engine.closed_streams == 1


async def test_an_incomplete_character_at_the_end_is_not_shown(sample: LoadedModel) -> None:
    ids = sample.tokenizer("ok 😀", add_special_tokens=False).input_ids[:-1]
    text, finish = await answer(backend_over(FakeEngine(ids), sample), chat("Hi"))
    assert text.rstrip() == "ok"
    assert finish.reason == "length"


async def test_a_model_without_chat_template_raises_for_a_chat_but_completes(sample: LoadedModel) -> None:
    tokenizer = copy.deepcopy(sample.tokenizer)
    tokenizer.chat_template = None
    ids = tokenizer("Paris", add_special_tokens=False).input_ids
    loaded = SimpleNamespace(
        check_ids=lambda ids: None,
        tokenizer=tokenizer,
        context_length=100,
        eos_ids=frozenset(),
        spec=SimpleNamespace(name="n", title="t", about="a", chat_format=None),
        recommended=SimpleNamespace(sampling=SamplingParams()),
        placement=PLACEMENT,
        facts=(),
        card=(),
        memory=None,
        switches=Switches(),
        source=SOURCE,
    )
    backend = backend_over(FakeEngine(ids), loaded)
    with pytest.raises(InvalidRequestError, match="Completion tab"):
        await answer(backend, chat("Hi"))
    text, _ = await answer(backend, GenerationRequest(prompt="The capital is"))
    assert text == "Paris"


async def test_a_failed_load_is_raised_and_the_next_request_tries_again(sample: LoadedModel) -> None:
    attempts = 0

    def load(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ModelError("no luck")
        return ReadyModel(sample, FakeEngine(sample.tokenizer("yes", add_special_tokens=False).input_ids))

    backend = LocalBackend(ModelManager(load), OPTIONS)
    with pytest.raises(ModelError, match="no luck"):
        await answer(backend, chat("Hi"))
    assert backend.status().stage == "failed"
    text, _ = await answer(backend, chat("Hi"))
    assert text == "yes"
    assert backend.status().stage == "ready"


def switching_backend(sample: LoadedModel, go: threading.Event, errors: list[ModelError]) -> LocalBackend:
    """Return a backend whose second load waits for ``go`` and raises the next of ``errors``, if there is one."""
    loads: list[LoadOptions] = []

    def load(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        loads.append(options)
        if len(loads) > 1:
            report("downloading", 0.5, "half")
            while not go.wait(0.01):
                if cancelled.is_set():
                    raise LoadCancelledError("The load was cancelled.")
            if errors:
                raise errors.pop()
        word = "new" if len(loads) > 1 else "old"
        return ReadyModel(sample, FakeEngine(sample.tokenizer(word, add_special_tokens=False).input_ids))

    backend = LocalBackend(ModelManager(load), LoadOptions("sample"))
    backend.wait_until_ready()
    return backend


async def until(backend: LocalBackend, stage: str) -> None:
    while backend.status().stage != stage:
        await asyncio.sleep(0.01)


NEW = LoadOptions("granite-3.3-2b-instruct")


async def test_the_old_model_answers_until_the_new_one_is_ready(sample: LoadedModel) -> None:
    go = threading.Event()
    backend = switching_backend(sample, go, [])
    backend.select(NEW)
    await until(backend, "downloading")
    assert backend.status().model == NEW.model
    assert (await answer(backend, chat("Hi")))[0] == "old"
    with pytest.raises(InvalidRequestError, match="cancel it first"):
        backend.select(LoadOptions("granite-3.3-8b-instruct"))
    go.set()
    await until(backend, "ready")
    while (await answer(backend, chat("Hi")))[0] != "new":
        await asyncio.sleep(0.01)
    backend.close()


async def test_a_failed_switch_has_a_notice_and_the_old_model_answers(sample: LoadedModel) -> None:
    go = threading.Event()
    go.set()
    backend = switching_backend(sample, go, [ModelError("The hub cannot be reached.")])
    backend.select(NEW)
    while not backend.status().notice:
        await asyncio.sleep(0.01)
    assert backend.status().stage == "ready"
    assert backend.status().notice == "granite-3.3-2b-instruct: The hub cannot be reached."
    assert (await answer(backend, chat("Hi")))[0] == "old"
    backend.close()


async def test_a_switch_is_cancelled(sample: LoadedModel) -> None:
    backend = switching_backend(sample, threading.Event(), [])
    backend.select(NEW)
    await until(backend, "downloading")
    backend.cancel_load()
    while not backend.status().notice:
        await asyncio.sleep(0.01)
    assert "cancelled" in backend.status().notice
    assert backend.status().stage == "ready"
    backend.close()


async def test_an_unloaded_model_is_loaded_again_by_the_next_request(sample: LoadedModel) -> None:
    go = threading.Event()
    go.set()
    backend = switching_backend(sample, go, [])
    backend.unload()
    assert backend.status().stage == "idle"
    assert (await answer(backend, chat("Hi")))[0] == "new"
    backend.close()


def test_an_unknown_model_raises_immediately(sample: LoadedModel) -> None:
    backend = switching_backend(sample, threading.Event(), [])
    with pytest.raises(UnknownModelError):
        backend.select(LoadOptions("no-such-model"))
    assert backend.status().stage == "ready"
    backend.close()


async def test_another_model_uses_the_engine_option_of_the_process(sample: LoadedModel) -> None:
    loads: list[LoadOptions] = []

    def load(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        loads.append(options)
        return ReadyModel(sample, FakeEngine([]))

    backend = LocalBackend(ModelManager(load), LoadOptions("sample", engine="dynamic", compile=True))
    backend.wait_until_ready()
    backend.select(replace(NEW, dtype="float32"))
    while len(loads) < 2:
        await asyncio.sleep(0.01)
    backend.close()
    assert loads[1] == replace(NEW, dtype="float32", engine="dynamic", compile=True)


def test_a_fixed_model_is_not_changed_or_unloaded(sample: LoadedModel) -> None:
    def load(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        return ReadyModel(sample, FakeEngine([]))

    backend = LocalBackend(ModelManager(load), OPTIONS, fixed="Several processes share this model.")
    backend.wait_until_ready()
    assert backend.choices() == ()
    for change in (backend.unload, lambda: backend.select(NEW)):
        with pytest.raises(InvalidRequestError, match="share this model"):
            change()
    assert backend.status().stage == "ready"
    backend.close()


def test_choices_show_the_sizes_of_the_models(sample: LoadedModel) -> None:
    labels = {choice.name: choice.label for choice in switching_backend(sample, threading.Event(), []).choices()}
    assert labels["granite-3.3-2b-instruct"].startswith("Granite 3.3 · granite-3.3-2b-instruct · 2.5B")
    assert "sample" in labels


async def test_choices_show_which_models_fit_if_the_device_is_known(real: LocalBackend) -> None:
    real.wait_until_ready()
    labels = {choice.name: choice.label for choice in real.choices()}
    assert labels["sample"].endswith("fits in Q4_1")
    assert labels["granite-4.2-30b"].endswith(("in Q8_0", "in Q6_K", "in Q4_K_M", "does not fit"))


async def test_an_answer_matches_its_constraint(real: LocalBackend) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    constraint = Constraint.from_schema(schema)
    text, finish = await answer(real, chat("Give me an age as JSON.", constraint=constraint, max_tokens=40))
    assert finish.reason == "stop"
    assert isinstance(json.loads(text)["age"], int)


async def test_a_text_with_a_constraint_is_continued_where_it_was_cut(real: LocalBackend) -> None:
    constraint = Constraint("regex", pattern="[a-z]{3}-[0-9]{3}")
    sampling = SamplingParams(constraint=constraint)
    text, finish = await answer(real, GenerationRequest(prompt="Code abc-1", sampling=sampling, begun=("abc-1", ())))
    assert (text.isdigit(), len(text), finish.reason) == (True, 2, "stop")
    with pytest.raises(InvalidRequestError, match="does not start as the regex requires"):
        await answer(real, GenerationRequest(prompt="Code 1", sampling=sampling, begun=("1", ())))


class Obedient(FakeEngine):
    """Passes each token to the matcher."""

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, matcher: Matcher | None = None
    ) -> AsyncGenerator[Token | Queued]:
        assert matcher is not None
        async for token in super().generate(prompt_ids, sampling, matcher):
            assert isinstance(token, Token)
            matcher.accept(token.id)
            yield token


@pytest.mark.parametrize(("answer", "fits"), [("hm, maybe</think>\n\nno", True), ("no</think>maybe", False)])
async def test_a_constraint_starts_after_the_thinking(sample: LoadedModel, answer: str, fits: bool) -> None:
    tokenizer = copy.deepcopy(sample.tokenizer)
    tokenizer.chat_template = THINKS
    engine = Obedient(tokenizer(answer, add_special_tokens=False).input_ids)
    backend = backend_over(engine, replace(sample, tokenizer=tokenizer))
    stream = backend.stream(chat("Sure?", constraint=Constraint("choice", choices=("yes", "no"))))
    if not fits:
        with pytest.raises(EngineError, match="not allowed by the choice"):
            [event async for event in stream]
        return
    events = [event async for event in stream]
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == "hm, maybe"
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "no"


@pytest.mark.parametrize(
    ("side", "is_home"),
    [
        (LoadOptions(dtype="float32", quantization="none"), True),
        (LoadOptions("chosen", dtype="float32", quantization="none"), True),
        (LoadOptions(dtype="bfloat16", quantization="none"), False),
        (LoadOptions(dtype="float32", quantization="none", context=100), False),
    ],
)
async def test_a_model_that_is_already_loaded_is_not_loaded_again(
    side: LoadOptions, is_home: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[CompareRequest] = []

    async def compare(lease: Any, request: CompareRequest) -> Any:
        compared.append(request)
        yield Comparing("done")

    status = ModelStatus("sample", "ready", name="chosen", setup=replace(SETUP, precision=Chosen("float32", "")))
    monkeypatch.setattr("granite_demo.backends.comparison.compare", compare)
    monkeypatch.setattr(ModelManager, "status", lambda self, options: status)
    monkeypatch.setattr("granite_demo.models.registry.resolve", lambda name: None)
    backend = backend_over(FakeEngine([]), None)
    other = LoadOptions(dtype="float16", quantization="none")
    assert [event async for event in backend.compare(CompareRequest("text", side, other))] == [Comparing("done")]
    assert (compared[0].reference == OPTIONS) is is_home
    assert compared[0].other == other
