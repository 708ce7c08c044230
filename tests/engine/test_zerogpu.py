"""Answers from a process that has a GPU for a limited time, with a fake of the package ``spaces``."""

import asyncio
import inspect
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing
from contextvars import ContextVar
from io import StringIO
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from granite_demo.cli import serve as serving
from granite_demo.engine import zerogpu
from granite_demo.engine.factory import create_engine
from granite_demo.engine.zerogpu import ZeroGpuEngine, load_spaces, seconds_for, start_space
from granite_demo.errors import ConfigurationError, EngineBusyError, EngineClosedError, EngineError, InvalidRequestError
from granite_demo.server import run
from granite_demo.settings import Settings
from granite_demo.types.constraints import Constraint
from granite_demo.types.engine_kinds import ZEROGPU
from granite_demo.types.logprobs import Token
from granite_demo.types.model_status import EngineStats
from granite_demo.types.sampling_params import SamplingParams
from tests.engine.running import answer, reference, tiny_model, wait_idle
from tests.fakes import SETUP, FakeBackend

Task = Callable[..., Iterator[Any]]
VISITOR: ContextVar[str] = ContextVar("visitor")
PROMPT = [5, 6, 7, 8]


class QuotaError(Exception):
    """An error with the attributes of Gradio's errors."""

    def __init__(self) -> None:
        self.title, self.message = "ZeroGPU quota exceeded", "You have 3 s left."


class FakeSpaces:
    """Runs decorated functions in this process, but pickles all inputs and outputs."""

    def __init__(self) -> None:
        self.durations: list[int] = []
        self.visitors: list[str] = []
        self.log: list[str] = []
        self.refuses = False
        self.zero = SimpleNamespace(startup=lambda: self.log.append("startup"))

    def GPU(
        self, duration: Callable[..., int]
    ) -> Callable[[Callable[..., Iterator[Any]]], Callable[..., Iterator[Any]]]:
        def decorate(task: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
            assert inspect.isgeneratorfunction(task)

            def lent(*values: Any) -> Iterator[Any]:
                self.visitors.append(VISITOR.get("nobody"))
                self.durations.append(duration(*values))
                if self.refuses:
                    raise QuotaError
                try:
                    for result in task(*pickle.loads(pickle.dumps(values))):
                        yield pickle.loads(pickle.dumps(result))
                finally:
                    self.log.append("released")

            return lent

        return decorate


@pytest.fixture
def spaces(monkeypatch: pytest.MonkeyPatch) -> FakeSpaces:
    fake = FakeSpaces()
    monkeypatch.setitem(sys.modules, "spaces", fake)
    return fake


@pytest.fixture
def engine(spaces: FakeSpaces) -> Iterator[ZeroGpuEngine]:
    engine = ZeroGpuEngine(tiny_model(), spaces, SETUP.engine, device="cpu")
    yield engine
    engine.close()


async def test_the_answer_is_that_of_the_model_and_the_gpu_is_released(
    spaces: FakeSpaces, engine: ZeroGpuEngine
) -> None:
    loaded = tiny_model()
    for prompt in (PROMPT, list(range(1, 60))):
        assert await answer(engine, prompt, max_tokens=9) == reference(loaded, prompt, 9)
        await wait_idle(engine)
    assert spaces.log == ["released"] * 2


async def test_an_end_token_ends_the_answer(spaces: FakeSpaces) -> None:
    expected = reference(tiny_model(), PROMPT, 9)
    engine = ZeroGpuEngine(tiny_model(eos_ids=frozenset(expected[3:4])), spaces, SETUP.engine, device="cpu")
    assert await answer(engine, PROMPT, max_tokens=9) == expected[: expected.index(expected[3]) + 1]
    engine.close()


async def test_the_requested_time_depends_on_the_answer_and_counts_for_the_visitor(
    spaces: FakeSpaces, engine: ZeroGpuEngine
) -> None:
    VISITOR.set("ann")
    await answer(engine, PROMPT, max_tokens=200)
    assert spaces.visitors == ["ann"]
    assert spaces.durations == [25]
    assert seconds_for(PROMPT, SamplingParams(max_tokens=100_000)) == zerogpu.MAX_SECONDS


async def test_a_closed_stream_ends_the_work(spaces: FakeSpaces, engine: ZeroGpuEngine) -> None:
    async with aclosing(engine.generate(PROMPT, SamplingParams(max_tokens=500))) as items:
        assert isinstance(await anext(items), Token)
        assert engine.stats() == EngineStats(1, 0)
    await wait_idle(engine)
    assert spaces.log == ["released"]


async def test_the_text_of_zerogpu_reaches_the_reader(spaces: FakeSpaces, engine: ZeroGpuEngine) -> None:
    spaces.refuses = True
    with pytest.raises(EngineError, match=r"ZeroGPU quota exceeded: You have 3 s left\."):
        await answer(engine, PROMPT, max_tokens=5)
    spaces.refuses = False
    assert len(await answer(engine, PROMPT, max_tokens=5)) == 5


async def test_unsupported_features_have_a_reason(engine: ZeroGpuEngine) -> None:
    assert [feature for feature, why in engine.unable if why] == ["scoring", "constraints", "comparing precisions"]
    with pytest.raises(InvalidRequestError, match="cannot be scored"):
        await anext(engine.score(PROMPT, lambda position, logits: position))
    constrained = engine.generate(
        PROMPT, SamplingParams(max_tokens=5, constraint=Constraint("json_object")), cast(Any, object())
    )
    with pytest.raises(InvalidRequestError, match="cannot be constrained"):
        await anext(constrained)


async def test_too_many_are_refused_and_close_ends_the_others(
    engine: ZeroGpuEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zerogpu, "MAX_WAITING", 1)
    items = engine.generate(PROMPT, SamplingParams(max_tokens=500))
    await anext(items)
    with pytest.raises(EngineBusyError):
        await answer(engine, PROMPT, max_tokens=5)
    await asyncio.to_thread(engine.close)
    with pytest.raises(EngineClosedError):
        async for _ in items:
            pass
    with pytest.raises(EngineClosedError):
        await answer(engine, PROMPT, max_tokens=5)


def test_the_engine_is_chosen_on_such_a_space(spaces: FakeSpaces) -> None:
    space = {"SPACE_ID": "me/demo"}
    assert Settings.resolve({}, {**space, "SPACES_ZERO_GPU": "true"}).engine == "zerogpu"
    assert Settings.resolve({}, space).engine == "auto"
    assert Settings.resolve({}, {"SPACES_ZERO_GPU": "true"}).engine == "auto"
    assert Settings.resolve({"engine": "dynamic"}, {**space, "SPACES_ZERO_GPU": "1"}).engine == "dynamic"
    engine = create_engine(tiny_model(), ZEROGPU)
    assert engine.facts[0][1:] == (
        "ZeroGPU, a process for each answer",
        "the Space has a GPU only during an answer",
    )
    engine.close()


def test_without_the_package_or_the_hardware_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spaces", None)
    with pytest.raises(ConfigurationError, match="needs the package spaces"):
        load_spaces()
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(zero=SimpleNamespace()))
    with pytest.raises(ConfigurationError, match="for Spaces with ZeroGPU hardware"):
        load_spaces()


def test_zerogpu_gets_the_weights_before_the_page_starts(
    spaces: FakeSpaces, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, served = spaces.log, []
    loaded = SimpleNamespace(model=SimpleNamespace(to=lambda device: log.append(device)))

    def serve(app: Any, limited: Any, listener: Any, *more: Any) -> None:
        served.append((app.state.page.get_blocks().server.config.port, listener.getsockname()[1]))
        listener.close()

    def wait_until_ready() -> Any:
        log.append("loaded")
        return SimpleNamespace(loaded=loaded)

    setattr(backend, "wait_until_ready", wait_until_ready)  # noqa: B010
    monkeypatch.setattr(run, "serve", serve)
    monkeypatch.setattr(serving, "check_cache_folders", lambda *values: None)
    settings = Settings.resolve({"port": 0, "host": "127.0.0.1", "engine": "zerogpu"}, {})
    monkeypatch.setattr(serving, "opened_backend", lambda *values: backend)
    serving.run_server(settings, Console(file=StringIO()))
    assert log == ["loaded", "cuda", "startup"]
    assert len({*served[0]}) == 1


def test_start_space_needs_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spaces", None)
    with pytest.raises(ConfigurationError):
        start_space(cast(Any, SimpleNamespace(model=SimpleNamespace(to=lambda device: None))))
