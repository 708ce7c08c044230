"""Tests for loads, leases and switches, with a fake loader and real threads."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from granite_demo.backends.model_manager import ModelManager, ReadyModel
from granite_demo.errors import DownloadError, LoadCancelledError, ModelError, OutOfMemoryError
from granite_demo.prompts.fim import NO_TOKENS
from granite_demo.types.load_options import LoadOptions, Report
from granite_demo.types.messages import Switches
from granite_demo.types.model_status import ModelStatus
from granite_demo.types.sampling_params import SamplingParams
from tests.fakes import PLACEMENT, SETUP, SOURCE, FakeEngine

ONE, TWO = LoadOptions("one"), LoadOptions("two")
LOADED: Any = SimpleNamespace(
    tokenizer=SimpleNamespace(added_tokens_encoder={}, chat_template=None),
    spec=SimpleNamespace(name="name", title="Title", about="About it.", chat_format=None),
    recommended=SimpleNamespace(sampling=SamplingParams(temperature=0.5)),
    placement=PLACEMENT,
    source=replace(SOURCE, chosen_because="a test"),
    facts=(("Model", "One", "about one"), ("Device", "cpu", "asked for")),
    context_length=4096,
    card=(),
    memory=None,
    switches=Switches(tools=True),
)
WAIT = 20.0
"""The timeout in seconds. A test reaches it only if it fails."""


class FakeLoader:
    """Waits for ``go``, then raises the next of ``errors`` or returns a model with a fake engine."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.started = threading.Semaphore(0)
        self.calls: list[str] = []
        self.errors: list[BaseException] = []
        self.engines: list[FakeEngine] = []
        self.heeds_cancel = True
        self.running = 0
        self.most = 0

    def __call__(self, options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        self.calls.append(options.model)
        self.running += 1
        self.most = max(self.most, self.running)
        self.started.release()
        report("downloading", 0.5, "half")
        while not self.go.wait(0.005):
            if cancelled.is_set() and self.heeds_cancel:
                self.running -= 1
                raise LoadCancelledError("cancelled")
        self.running -= 1
        if self.errors:
            raise self.errors.pop(0)
        self.engines.append(FakeEngine([]))
        self.engines[-1].unable = (("scoring", "a test"),)
        return ReadyModel(LOADED, self.engines[-1])


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader()


@pytest.fixture
def statuses() -> list[ModelStatus]:
    return []


@pytest.fixture
def manager(loader: FakeLoader, statuses: list[ModelStatus]) -> Iterator[ModelManager]:
    manager = ModelManager(loader, statuses.append)
    yield manager
    loader.go.set()
    manager.close()


def engine_of(ready: ReadyModel) -> FakeEngine:
    return cast(FakeEngine, ready.engine)


async def begin_lease(manager: ModelManager, options: LoadOptions) -> "asyncio.Task[ReadyModel]":
    """Start a task that waits for a lease and holds it for a moment."""

    async def use() -> ReadyModel:
        async with manager.lease(options) as ready:
            await asyncio.sleep(0)
            return ready

    task = asyncio.create_task(use())
    await asyncio.sleep(0)
    return task


# Loads


def test_loads_of_one_key_share_one(manager: ModelManager, loader: FakeLoader) -> None:
    barrier = threading.Barrier(8)
    futures: list[Future[ReadyModel]] = []

    def ask() -> None:
        barrier.wait(WAIT)
        futures.append(manager.load(ONE))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    loader.go.set()
    assert len({id(future.result(WAIT)) for future in futures}) == 1
    assert manager.load(LoadOptions("one")) is futures[0]
    assert loader.calls == ["one"]


def test_loads_of_different_keys_queue(manager: ModelManager, loader: FakeLoader) -> None:
    futures = [manager.load(ONE), manager.load(TWO), manager.load(LoadOptions("one", dtype="float32"))]
    assert loader.started.acquire(timeout=WAIT)
    assert not loader.started.acquire(timeout=0.1), "a second load started during the first"
    loader.go.set()
    assert len({id(future.result(WAIT)) for future in futures}) == 3
    assert loader.calls == ["one", "two", "one"]
    assert loader.most == 1


def test_statuses_come_in_order(manager: ModelManager, loader: FakeLoader, statuses: list[ModelStatus]) -> None:
    assert manager.status(ONE) == ModelStatus("one", "idle")
    future = manager.load(ONE)
    loader.started.acquire(timeout=WAIT)
    loader.go.set()
    future.result(WAIT)
    last = manager.status(ONE)
    manager.close()
    assert statuses == [
        ModelStatus("one", "downloading", 0.5, "half"),
        ModelStatus(
            "one",
            "ready",
            1.0,
            name="name",
            title="Title",
            about="About it.",
            setup=SETUP,
            chosen_because="a test",
            facts=(*LOADED.facts, *FakeEngine.facts),
            context_length=4096,
            switches=LOADED.switches,
            sampling=SamplingParams(temperature=0.5),
            unable=(("scoring", "a test"), ("fill in the middle", NO_TOKENS)),
        ),
    ]
    assert last == statuses[-1]


def test_a_queued_load_has_a_status(manager: ModelManager, loader: FakeLoader) -> None:
    manager.load(ONE)
    manager.load(TWO)
    assert manager.status(TWO) == ModelStatus("two", "loading")


def test_a_failed_load_has_a_status_and_is_tried_again(
    manager: ModelManager, loader: FakeLoader, statuses: list[ModelStatus]
) -> None:
    loader.errors = [DownloadError("No network.")]
    loader.go.set()
    failed = manager.load(ONE)
    with pytest.raises(DownloadError, match="^No network.$"):
        failed.result(WAIT)
    failure = manager.status(ONE)
    assert failure == ModelStatus("one", "failed", None, "No network.")

    again = manager.load(ONE)
    assert again is not failed
    assert isinstance(again.result(WAIT), ReadyModel)
    assert loader.calls == ["one", "one"]
    assert statuses.count(failure) == 1
    assert manager.status(ONE).stage == "ready"
    assert manager.status(ONE).detail == ""


@pytest.mark.parametrize("error", [KeyError("weights"), SystemExit(3)], ids=["exception", "exit"])
def test_unknown_exceptions_become_model_errors_and_are_logged(
    manager: ModelManager, loader: FakeLoader, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    loader.errors = [error]
    loader.go.set()
    with pytest.raises(ModelError, match=rf"^Loading one failed \({type(error).__name__}\)\. See the log") as caught:
        manager.load(ONE).result(WAIT)
    assert manager.status(ONE).detail == str(caught.value)
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error]


def test_a_listener_can_try_a_failed_load_again(loader: FakeLoader) -> None:
    loader.errors = [DownloadError("No network.")]
    loader.go.set()
    again: list[Future[ReadyModel]] = []
    retried = threading.Event()

    def retry(status: ModelStatus) -> None:
        if status.stage == "failed":
            again.append(own.load(ONE))
            retried.set()

    own = ModelManager(loader, retry)
    try:
        first = own.load(ONE)
        with pytest.raises(DownloadError):
            first.result(WAIT)
        assert retried.wait(WAIT)
        assert again[0] is not first
    finally:
        own.close()


def test_a_broken_listener_does_not_harm_a_load(loader: FakeLoader) -> None:
    def broken(status: ModelStatus) -> None:
        raise BrokenPipeError("no terminal")

    loader.go.set()
    own = ModelManager(loader, broken)
    try:
        assert isinstance(own.load(ONE).result(WAIT), ReadyModel)
    finally:
        own.close()


# Leases


async def test_leases_share_a_model(manager: ModelManager, loader: FakeLoader) -> None:
    loader.go.set()
    async with manager.lease(ONE) as first, manager.lease(ONE) as second:
        assert first is second
        assert first.loaded is LOADED
    assert loader.calls == ["one"]
    assert not engine_of(first).closed, "the model is kept for the next lease"


async def test_a_lease_raises_the_error_of_the_load(manager: ModelManager, loader: FakeLoader) -> None:
    loader.errors = [DownloadError("No network.")]
    loader.go.set()
    with pytest.raises(DownloadError, match="No network"):
        async with manager.lease(ONE):
            pytest.fail("the block ran without a model")


async def test_a_lease_keeps_its_model_after_an_unload(manager: ModelManager, loader: FakeLoader) -> None:
    loader.go.set()
    async with manager.lease(ONE) as ready:
        async with manager.lease(ONE):
            manager.unload(ONE)
            assert manager.status(ONE).stage == "idle"
        assert not engine_of(ready).closed, "the first lease still uses it"
        async with manager.lease(ONE) as fresh:
            assert fresh is not ready
        assert not engine_of(ready).closed
    assert engine_of(ready).closed
    assert not engine_of(fresh).closed


async def test_a_block_that_raises_ends_its_lease(manager: ModelManager, loader: FakeLoader) -> None:
    async def fail() -> None:
        async with manager.lease(ONE):
            manager.unload(ONE)
            raise ZeroDivisionError

    loader.go.set()
    with pytest.raises(ZeroDivisionError):
        await fail()
    assert loader.engines[0].closed


async def test_a_cancelled_lease_does_not_cancel_the_load(manager: ModelManager, loader: FakeLoader) -> None:
    leaving, staying = await begin_lease(manager, ONE), await begin_lease(manager, ONE)
    await asyncio.to_thread(loader.started.acquire, timeout=WAIT)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    loader.go.set()
    ready = await asyncio.wait_for(staying, WAIT)
    assert loader.calls == ["one"]
    manager.unload(ONE)
    assert engine_of(ready).closed, "the cancelled lease still counts"


# Unload and close


def test_unload_closes_an_idle_model(manager: ModelManager, loader: FakeLoader) -> None:
    loader.go.set()
    ready = manager.load(ONE).result(WAIT)
    manager.unload(TWO)
    assert not engine_of(ready).closed
    manager.unload(ONE)
    assert engine_of(ready).closed
    assert manager.status(ONE).stage == "idle"


async def test_unload_cancels_a_load(manager: ModelManager, loader: FakeLoader, statuses: list[ModelStatus]) -> None:
    waiting = await begin_lease(manager, ONE)
    await asyncio.to_thread(loader.started.acquire, timeout=WAIT)
    manager.unload(ONE)
    with pytest.raises(LoadCancelledError):
        await asyncio.wait_for(waiting, WAIT)
    await asyncio.to_thread(manager.close)
    assert statuses[-1].stage == "failed"
    assert not loader.engines


def test_unload_cancels_a_load_that_has_not_begun(manager: ModelManager, loader: FakeLoader) -> None:
    first, second = manager.load(ONE), manager.load(TWO)
    manager.unload(TWO)
    loader.go.set()
    with pytest.raises(LoadCancelledError):
        second.result(WAIT)
    first.result(WAIT)
    assert loader.calls == ["one"]


def test_a_load_that_ends_just_after_its_unload_is_closed(manager: ModelManager, loader: FakeLoader) -> None:
    loader.heeds_cancel = False
    future = manager.load(ONE)
    loader.started.acquire(timeout=WAIT)
    manager.unload(ONE)
    loader.go.set()
    future.exception(WAIT)
    manager.close()
    assert loader.engines[0].closed


def test_close_closes_all_engines_and_can_be_called_twice(manager: ModelManager, loader: FakeLoader) -> None:
    loader.go.set()
    for options in (ONE, TWO):
        manager.load(options).result(WAIT)
    manager.close()
    assert [engine.closed for engine in loader.engines] == [True, True]
    manager.close()


async def test_close_cancels_loads_and_waits_for_them(manager: ModelManager, loader: FakeLoader) -> None:
    waiting, queued = await begin_lease(manager, ONE), await begin_lease(manager, TWO)
    await asyncio.to_thread(loader.started.acquire, timeout=WAIT)
    closing = threading.Thread(target=manager.close, daemon=True)
    closing.start()
    await asyncio.to_thread(closing.join, WAIT)
    assert not closing.is_alive()
    assert loader.running == 0
    for task in (waiting, queued):
        with pytest.raises(LoadCancelledError):
            await asyncio.wait_for(task, WAIT)
    assert loader.calls == ["one"]


def test_nothing_loads_after_close(manager: ModelManager, loader: FakeLoader) -> None:
    manager.close()
    with pytest.raises(ModelError, match="server is stopping"):
        manager.load(ONE)
    assert not loader.calls


async def test_close_ends_running_requests_and_their_leases(manager: ModelManager, loader: FakeLoader) -> None:
    loader.go.set()
    async with manager.lease(ONE) as ready:
        await asyncio.to_thread(manager.close)
        assert engine_of(ready).closed


async def test_close_closes_unloaded_models_in_use(manager: ModelManager, loader: FakeLoader) -> None:
    loader.go.set()
    async with manager.lease(ONE) as ready:
        manager.unload(ONE)
        await asyncio.to_thread(manager.close)
        assert engine_of(ready).closed


# Switching


def test_a_switch_loads_the_new_model_before_it_unloads_the_old(manager: ModelManager, loader: FakeLoader) -> None:
    loader.go.set()
    old = manager.load(ONE).result(WAIT)
    answering: list[tuple[LoadOptions, bool]] = []
    manager.switch(ONE, TWO, lambda options: answering.append((options, engine_of(old).closed)))
    assert loader.calls == ["one", "two"]
    assert answering == [(TWO, False)]
    assert engine_of(old).closed
    assert not loader.engines[1].closed
    assert manager.status(ONE).stage == "idle"


def test_a_failed_switch_leaves_the_old_model(manager: ModelManager, loader: FakeLoader) -> None:
    loader.go.set()
    old = manager.load(ONE).result(WAIT)
    loader.errors = [DownloadError("No network.")]
    answering: list[LoadOptions] = []
    with pytest.raises(DownloadError):
        manager.switch(ONE, TWO, answering.append)
    assert answering == []
    assert manager.status(ONE).stage == "ready"
    assert not engine_of(old).closed


def test_if_both_do_not_fit_the_old_model_is_unloaded_first(manager: ModelManager, loader: FakeLoader) -> None:
    loader.go.set()
    old = manager.load(ONE).result(WAIT)
    loader.errors = [OutOfMemoryError("Too big.")]
    answering: list[tuple[LoadOptions, bool]] = []
    manager.switch(ONE, TWO, lambda options: answering.append((options, engine_of(old).closed)))
    assert answering == [(TWO, False)]
    assert engine_of(old).closed
    assert loader.calls == ["one", "two", "two"]
    assert manager.status(TWO).stage == "ready"


def test_if_the_new_model_does_not_fit_alone_the_old_is_loaded_again(manager: ModelManager, loader: FakeLoader) -> None:
    loader.go.set()
    manager.load(ONE).result(WAIT)
    loader.errors = [OutOfMemoryError("Too big."), OutOfMemoryError("Too big.")]
    answering: list[LoadOptions] = []
    with pytest.raises(OutOfMemoryError):
        manager.switch(ONE, TWO, answering.append)
    assert answering == [TWO, ONE]
    assert isinstance(manager.load(ONE).result(WAIT), ReadyModel)
    assert loader.calls == ["one", "two", "two", "one"]


def test_a_cancelled_load_fails(manager: ModelManager, loader: FakeLoader) -> None:
    future = manager.load(ONE)
    loader.started.acquire(timeout=WAIT)
    manager.cancel(ONE)
    with pytest.raises(LoadCancelledError):
        future.result(WAIT)
    assert manager.status(ONE).stage == "failed"


async def test_an_idle_model_is_unloaded(loader: FakeLoader) -> None:
    loader.go.set()
    own = ModelManager(loader, idle_seconds=0.2)
    async with own.lease(ONE):
        pass
    async with own.lease(ONE) as ready:  # before the timeout: the time starts again when it ends
        await asyncio.sleep(0.4)
        assert own.status(ONE).stage == "ready"
    await asyncio.sleep(1)
    assert own.status(ONE).stage == "idle"
    assert engine_of(ready).closed
    own.close()


async def test_a_borrowed_model_is_unloaded_unless_it_was_loaded_before(
    manager: ModelManager, loader: FakeLoader
) -> None:
    loader.go.set()
    async with manager.borrow(TWO, home=ONE) as ready:
        assert manager.status(TWO).stage == "ready"
    assert engine_of(ready).closed
    assert manager.status(TWO).stage == "idle"
    manager.load(ONE).result(WAIT)
    async with manager.borrow(ONE, home=ONE) as ready:
        pass
    assert manager.status(ONE).stage == "ready"
    assert not engine_of(ready).closed


async def test_if_both_do_not_fit_home_is_unloaded_and_loaded_again(manager: ModelManager, loader: FakeLoader) -> None:
    loader.go.set()
    answering, finished = await begin_lease(manager, ONE), asyncio.Event()
    home = await answering

    async def answer() -> None:
        async with manager.lease(ONE):
            await finished.wait()

    visitor = asyncio.create_task(answer())
    await asyncio.sleep(0.01)
    loader.errors = [OutOfMemoryError("Too big.")]
    borrowing = manager.borrow(TWO, home=ONE)
    entering = asyncio.create_task(borrowing.__aenter__())
    await asyncio.sleep(0.1)
    assert not engine_of(home).closed, "an answer is still running"
    assert not entering.done()
    finished.set()
    ready = await entering
    await visitor
    assert engine_of(home).closed
    assert manager.status(ONE).stage == "loading"
    assert "uses its memory" in manager.status(ONE).detail
    late = await begin_lease(manager, ONE)
    await asyncio.sleep(0.05)
    assert not late.done(), "it must wait for home"
    await borrowing.__aexit__(None, None, None)
    assert (await late) is not home
    assert engine_of(ready).closed
    assert loader.calls == ["one", "two", "two", "one"]


async def test_home_is_loaded_again_if_the_borrowed_model_does_not_fit(
    manager: ModelManager, loader: FakeLoader
) -> None:
    loader.go.set()
    manager.load(ONE).result(WAIT)
    loader.errors = [OutOfMemoryError("Too big."), OutOfMemoryError("Too big.")]
    with pytest.raises(OutOfMemoryError):
        async with manager.borrow(TWO, home=ONE):
            pass
    assert manager.load(ONE).result(WAIT)
    loader.errors = [OutOfMemoryError("Too big.")]
    manager.unload(ONE)
    with pytest.raises(OutOfMemoryError):  # no model can be unloaded to free memory
        async with manager.borrow(TWO, home=ONE):
            pass
    assert loader.calls == ["one", "two", "two", "one", "two"]


async def test_a_cancelled_borrow_cancels_the_load(manager: ModelManager, loader: FakeLoader) -> None:
    entering = asyncio.create_task(manager.borrow(TWO, home=ONE).__aenter__())
    await asyncio.to_thread(loader.started.acquire, timeout=WAIT)
    entering.cancel()
    await asyncio.wait([entering])
    assert manager.status(TWO).stage == "idle"
    async with asyncio.timeout(WAIT):
        while loader.running:
            await asyncio.sleep(0.01)


async def test_close_ends_requests_that_wait_for_home(manager: ModelManager, loader: FakeLoader) -> None:
    loader.go.set()
    manager.load(ONE).result(WAIT)
    loader.errors = [OutOfMemoryError("Too big.")]
    async with manager.borrow(TWO, home=ONE):
        late = await begin_lease(manager, ONE)
        await asyncio.to_thread(manager.close)
    with pytest.raises(ModelError):
        await late
