"""Answers written in a process that has a GPU for a while, with a stand-in for the package that lends it."""

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
from granite_demo.engine.zerogpu import ZeroGpuEngine, load_spaces, seconds_for, settle
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
    """As gradio's own error is."""

    def __init__(self) -> None:
        self.title, self.message = "ZeroGPU quota exceeded", "You have 3 s left."


class FakeSpaces:
    """Runs what it decorates here, but lets nothing through that another process would not get."""

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
                    self.log.append("given back")

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


async def test_the_answer_is_the_models_and_the_gpu_is_given_back(spaces: FakeSpaces, engine: ZeroGpuEngine) -> None:
    loaded = tiny_model()
    for prompt in (PROMPT, list(range(1, 60))):
        assert await answer(engine, prompt, max_tokens=9) == reference(loaded, prompt, 9)
        await wait_idle(engine)
    assert spaces.log == ["given back"] * 2


async def test_an_end_token_ends_it(spaces: FakeSpaces) -> None:
    expected = reference(tiny_model(), PROMPT, 9)
    engine = ZeroGpuEngine(tiny_model(eos_ids=frozenset(expected[3:4])), spaces, SETUP.engine, device="cpu")
    assert await answer(engine, PROMPT, max_tokens=9) == expected[: expected.index(expected[3]) + 1]
    engine.close()


async def test_it_is_asked_for_as_long_as_the_answer_may_take_on_the_visitors_account(
    spaces: FakeSpaces, engine: ZeroGpuEngine
) -> None:
    VISITOR.set("ann")
    await answer(engine, PROMPT, max_tokens=200)
    assert spaces.visitors == ["ann"]
    assert spaces.durations == [25]
    assert seconds_for(PROMPT, SamplingParams(max_tokens=100_000)) == zerogpu.MOST_SECONDS


async def test_a_reader_who_leaves_ends_the_work(spaces: FakeSpaces, engine: ZeroGpuEngine) -> None:
    async with aclosing(engine.generate(PROMPT, SamplingParams(max_tokens=500))) as items:
        assert isinstance(await anext(items), Token)
        assert engine.stats() == EngineStats(1, 0)
    await wait_idle(engine)
    assert spaces.log == ["given back"]


async def test_what_zerogpu_says_is_told(spaces: FakeSpaces, engine: ZeroGpuEngine) -> None:
    spaces.refuses = True
    with pytest.raises(EngineError, match=r"ZeroGPU quota exceeded: You have 3 s left\."):
        await answer(engine, PROMPT, max_tokens=5)
    spaces.refuses = False
    assert len(await answer(engine, PROMPT, max_tokens=5)) == 5


async def test_what_it_cannot_do_is_said(engine: ZeroGpuEngine) -> None:
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


def test_it_is_chosen_where_the_space_has_it(spaces: FakeSpaces) -> None:
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


def test_without_the_package_or_the_hardware_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spaces", None)
    with pytest.raises(ConfigurationError, match="needs the package spaces"):
        load_spaces()
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(zero=SimpleNamespace()))
    with pytest.raises(ConfigurationError, match="for Spaces with ZeroGPU hardware"):
        load_spaces()


def test_the_weights_are_given_to_it_before_the_page_is_served(
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


def test_settle_needs_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spaces", None)
    with pytest.raises(ConfigurationError):
        settle(cast(Any, SimpleNamespace(model=SimpleNamespace(to=lambda device: None))))
