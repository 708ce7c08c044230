"""The batching engine: recovery, admission and the shared cache. ``contract`` tests what all engines have in common.

On a CPU, steps are synchronous and are not captured. tests/gpu has the other tests.
"""

import asyncio
import gc
import random
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from granite_demo.engine.batching import request
from granite_demo.engine.batching.engine import BatchingEngine
from granite_demo.engine.batching.loop import Loop
from granite_demo.errors import ContextOverflowError, EngineClosedError, EngineError, UnsuitableEngineError
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.loading.tensor_parallel import Group
from granite_demo.types.sampling_params import SamplingParams
from tests.engine.contract import COMPANY, POISON, PROMPT, poisoned
from tests.engine.running import answer, batching_engine, has_work, tiny_model, until, wait_idle

SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.1}


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the engines of a failed test, because their threads would prevent the end of the test run."""
    made: list[weakref.ref[BatchingEngine]] = []
    warm_up = BatchingEngine.warm_up

    def remember(self: BatchingEngine) -> int:
        made.append(weakref.ref(self))
        return warm_up(self)

    with monkeypatch.context() as patch:
        patch.setattr(BatchingEngine, "warm_up", remember)
        yield
    for engine in filter(None, (reference() for reference in made)):
        engine.close()


def broken(output: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
    raise ZeroDivisionError("broken")


def without_poison() -> LoadedModel:
    """Return a model whose answers never have the poison token, because its score is always the lowest."""
    loaded = tiny_model()
    with torch.no_grad():
        loaded.model.lm_head.weight[POISON] = 0
    return loaded


async def alone(loaded: LoadedModel, prompts: list[list[int]], **sampling: Any) -> list[list[int]]:
    """Return the answer to each prompt, one at a time. The seed is the index in the list."""
    engine = batching_engine(loaded)
    answers = [await answer(engine, prompt, seed=seed, **sampling) for seed, prompt in enumerate(prompts)]
    engine.close()
    return answers


def ask(engine: BatchingEngine, prompts: list[list[int]], **sampling: Any) -> list["asyncio.Task[list[int]]"]:
    """Start all requests at the same time. The seed is the index in the list."""
    return [asyncio.create_task(answer(engine, prompt, seed=seed, **sampling)) for seed, prompt in enumerate(prompts)]


async def wait_until_computed(engine: BatchingEngine) -> None:
    """Wait until the loop has no requests, cancelled ones included."""
    await wait_idle(engine)
    async with asyncio.timeout(5):
        while has_work(engine._loop):
            await asyncio.sleep(0.01)


# When a step fails


@pytest.mark.release
async def test_two_faulty_requests_are_found_and_the_others_continue() -> None:
    loaded = without_poison()
    sampling: dict[str, Any] = {"top_k": 20, "max_tokens": 150, **SAMPLED}
    expected = await alone(loaded, COMPANY, **sampling)
    with poisoned(loaded, broken):
        engine = batching_engine(loaded, requests=5)
        beside = ask(engine, COMPANY, **sampling)
        await until(engine, running=3)
        bad = ask(engine, [[*PROMPT, POISON], [POISON, 5]], max_tokens=5)
        for error in await asyncio.gather(*bad, return_exceptions=True):
            assert isinstance(error, EngineError)
            assert "ZeroDivisionError" in error.user_text
        assert await asyncio.gather(*beside) == expected
        assert engine.stats().restarts >= 2
        assert await answer(engine, COMPANY[0], seed=0, **sampling) == expected[0]
        await wait_until_computed(engine)
        engine.close()


async def test_a_faulty_request_alone_costs_one_restart() -> None:
    loaded = without_poison()
    with poisoned(loaded, broken):
        engine = batching_engine(loaded)
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            await answer(engine, [POISON], max_tokens=5)
        assert engine.stats().restarts == 1
        assert len(await answer(engine, PROMPT, max_tokens=5)) == 5
        assert engine.stats().restarts == 1
        engine.close()


async def test_the_faulty_request_gets_its_error_if_the_loop_cannot_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = without_poison()
    with poisoned(loaded, broken):
        engine = batching_engine(loaded)
        monkeypatch.setattr(engine._loop, "restart", lambda: broken(torch.empty(0), torch.empty(0)))
        async with asyncio.timeout(20):
            with pytest.raises(EngineError, match="ZeroDivisionError"):
                await answer(engine, [POISON], max_tokens=5)
        engine.close()


async def test_a_log_that_keeps_the_failure_does_not_keep_the_cache(caplog: pytest.LogCaptureFixture) -> None:
    loaded = without_poison()
    with poisoned(loaded, broken):
        engine = batching_engine(loaded)
        before = weakref.ref(engine._loop._manager.batch_processor.cache)
        with pytest.raises(EngineError):
            await answer(engine, [POISON], max_tokens=5)
        assert len(await answer(engine, PROMPT, max_tokens=5)) == 5
        gc.collect()
        assert any(record.exc_info and record.exc_info[2] for record in caplog.records)
        assert before() is None
        engine.close()


async def test_a_loop_that_ends_without_requests_is_started_again() -> None:
    engine = batching_engine(tiny_model())

    def die() -> bool:
        raise ZeroDivisionError("broken")

    engine._loop._manager.batch_processor.prepare_next_batch = die
    async with asyncio.timeout(10):
        while not engine.stats().restarts:
            await asyncio.sleep(0.01)
    assert len(await answer(engine, PROMPT, max_tokens=5)) == 5
    assert engine.stats().restarts == 1
    engine.close()


async def test_a_request_that_the_loop_refuses_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = batching_engine(tiny_model())
    scheduler = engine._loop._manager.batch_processor.scheduler
    take = scheduler.add_waiting_request

    def refuse(state: Any) -> None:
        if state.initial_tokens == [1, 2]:
            raise ZeroDivisionError("broken")
        take(state)

    beside = ask(engine, [PROMPT], max_tokens=200)
    await until(engine, running=1)
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "add_waiting_request", refuse)
        with pytest.raises(EngineError, match="before it could answer"):
            await answer(engine, [1, 2], max_tokens=5)
    assert len(await beside[0]) == 200
    assert len(await answer(engine, [1, 2], max_tokens=5)) == 5
    assert engine.stats().restarts == 0
    assert sorted(engine._slots.free) == list(range(4))
    engine.close()


@pytest.mark.parametrize("broken_for_good", ["the restart fails", "the GPU is lost"])
async def test_an_engine_that_cannot_continue_ends_all_requests(
    broken_for_good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = without_poison()

    def fail(*_: Any) -> Any:
        raise RuntimeError("no memory for a cache")

    def lose(output: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    engine = batching_engine(loaded)
    if broken_for_good == "the restart fails":
        monkeypatch.setattr(engine._loop, "restart", fail)
    with poisoned(loaded, broken if broken_for_good == "the restart fails" else lose):
        beside = ask(engine, [*COMPANY, PROMPT], max_tokens=400)
        await until(engine, running=4)
        waiting = ask(engine, [[POISON]], max_tokens=5)
        beside[0].cancel()
        results = await asyncio.gather(*beside[1:], *waiting, return_exceptions=True)
        assert [type(result) for result in results] == [EngineError] * 4
        with pytest.raises(EngineError, match="Restart the server"):
            await answer(engine, PROMPT, max_tokens=5)
        assert (engine.stats().running, engine.stats().waiting) == (0, 0)
        engine.close()


async def test_a_loop_of_several_processes_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = without_poison()
    group = Group(2)
    ended: list[str] = []
    monkeypatch.setattr(group, "abort", ended.append)
    engine = batching_engine(loaded, group=group)
    monkeypatch.setattr(engine._loop, "restart", pytest.fail)
    with poisoned(loaded, broken):
        beside = ask(engine, COMPANY, max_tokens=400)
        await until(engine, running=3)
        with pytest.raises(EngineError, match="Restart the server"):
            await answer(engine, [POISON], max_tokens=5)
        assert [type(error) for error in await asyncio.gather(*beside, return_exceptions=True)] == [EngineError] * 3
        async with asyncio.timeout(5):
            while not ended:
                await asyncio.sleep(0.01)
    engine.close()


async def test_closing_during_a_recovery_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = without_poison()
    engine = batching_engine(loaded)
    restart, restarting = engine._loop.restart, asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow_restart() -> None:
        loop.call_soon_threadsafe(restarting.set)
        restart()

    monkeypatch.setattr(engine._loop, "restart", slow_restart)
    with poisoned(loaded, broken):
        tasks = ask(engine, [*COMPANY, [POISON]], max_tokens=400)
        await restarting.wait()
        await asyncio.to_thread(engine.close)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} == {EngineClosedError}


# Cancelling


@pytest.mark.release
async def test_many_cancellations_do_not_affect_other_requests() -> None:
    loaded = tiny_model()
    # A common prefix of more than a block, so that blocks are shared.
    common = [1 + index % 60 for index in range(300)]
    prompts = [[*common, 5], [*common, 6, 7], PROMPT]
    sampling: dict[str, Any] = {"max_tokens": 200, **SAMPLED}
    expected = await alone(loaded, prompts, **sampling)
    engine = batching_engine(loaded, requests=8)
    staying = ask(engine, prompts, **sampling)
    choose = random.Random(0)

    async def give_up(index: int) -> None:
        await asyncio.sleep(choose.uniform(0, 2))
        prompt = [*common[: choose.choice((10, 256, 300))], index]
        count = choose.randint(40, 600)
        task = asyncio.create_task(answer(engine, prompt, max_tokens=count, seed=index, **SAMPLED))
        await asyncio.sleep(choose.uniform(0, 0.5))
        task.cancel()
        await asyncio.wait([task])

    await asyncio.gather(*(give_up(index) for index in range(60)))
    assert await asyncio.gather(*staying) == expected
    await wait_until_computed(engine)
    assert engine.stats().restarts == 0
    assert sorted(engine._slots.free) == list(range(8))
    assert await answer(engine, prompts[1], seed=1, **sampling) == expected[1]
    engine.close()


# The cache


async def test_a_prompt_larger_than_the_cache_is_refused() -> None:
    engine = batching_engine(tiny_model(), cache_tokens=512)
    with pytest.raises(ContextOverflowError, match="512"):
        await answer(engine, [1] * 512, max_tokens=1)
    assert len(await answer(engine, [1] * 511, max_tokens=1)) == 1
    engine.close()


async def test_an_answer_ends_when_the_cache_is_full() -> None:
    engine = batching_engine(tiny_model(), cache_tokens=512)
    assert len(await answer(engine, [1] * 400, max_tokens=1000)) == 112
    await wait_until_computed(engine)
    engine.close()


async def test_requests_wait_until_the_cache_has_space() -> None:
    loaded = tiny_model()
    prompts = [[3 + index] * 300 for index in range(3)]
    expected = await alone(loaded, prompts, max_tokens=60)
    engine = batching_engine(loaded, cache_tokens=1280)
    tasks = ask(engine, prompts, max_tokens=60)
    # 360 tokens, and a block that is not filled: two requests need 1,232.
    await until(engine, running=2, waiting=1)
    assert await asyncio.gather(*tasks) == expected
    engine.close()


@pytest.mark.release
async def test_a_full_cache_does_not_change_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "LIKELY_ANSWER", 8)
    loaded = tiny_model()
    prompts = [[3 + index] * 40 for index in range(3)]
    sampling: dict[str, Any] = {"max_tokens": 230, **SAMPLED}
    expected = await alone(loaded, prompts, **sampling)
    read: list[int] = []
    loaded.model.register_forward_pre_hook(lambda module, args, kwargs: count(read, kwargs), with_kwargs=True)
    engine = batching_engine(loaded, cache_tokens=1024)
    tasks = ask(engine, prompts, **sampling)
    await until(engine, running=3)
    assert await asyncio.gather(*tasks) == expected
    assert sum(read) > sum(map(len, prompts)) + 3 * 230, "nothing was computed twice: the cache was never full"
    engine.close()


def count(read: list[int], kwargs: dict[str, Any]) -> None:
    read.append(kwargs["input_ids"].numel())


async def test_a_common_prefix_is_computed_once() -> None:
    loaded = tiny_model(context_length=2048)
    read: list[int] = []
    loaded.model.register_forward_pre_hook(lambda module, args, kwargs: count(read, kwargs), with_kwargs=True)
    engine = batching_engine(loaded)
    prompt = [1 + index * 7 % 60 for index in range(600)]
    first = await answer(engine, prompt, max_tokens=20)
    assert sum(read) == 600 + 19  # the last token is not computed
    del read[:]
    follow_up = [*prompt, *first, 8, 9]
    said = await answer(engine, follow_up, max_tokens=20)
    # Two complete blocks of 256 are shared.
    assert sum(read) == 622 - 512 + 19
    engine.close()
    assert [said] == await alone(loaded, [follow_up], max_tokens=20)


# Start and end


async def test_more_requests_than_slots_wait() -> None:
    engine = batching_engine(tiny_model(), requests=2)
    tasks = ask(engine, [[index + 1] for index in range(5)], max_tokens=50)
    await until(engine, running=2, waiting=3)
    assert [len(ids) for ids in await asyncio.gather(*tasks)] == [50] * 5
    engine.close()


async def test_close_drops_the_model() -> None:
    loaded = tiny_model()
    model = weakref.ref(loaded.model)
    engine = batching_engine(loaded)
    await answer(engine, PROMPT, max_tokens=5)
    engine.close()
    engine.close()  # a second call does nothing
    del loaded
    gc.collect()
    assert model() is None


def test_steps_that_cannot_be_captured_make_it_unsuitable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loop, "wants_graphs", True)
    monkeypatch.setattr(Loop, "warm_up", lambda self: 0)
    engine = BatchingEngine(tiny_model(), cache_tokens=512, requests=2, prefill=256)
    with pytest.raises(UnsuitableEngineError, match="captured"):
        engine.warm_up()
    engine.close()  # an engine that never ran can be closed


async def test_a_reader_with_a_closed_event_loop_does_not_affect_others() -> None:
    engine = batching_engine(tiny_model())

    async def vanish() -> None:
        generator = engine.generate(PROMPT, SamplingParams(max_tokens=300))
        async for _ in generator:
            vanished.append(generator)  # a reference, so that garbage collection does not close it
            return

    vanished: list[Any] = []
    loop = asyncio.new_event_loop()
    await asyncio.to_thread(loop.run_until_complete, vanish())
    loop.close()
    assert len(await answer(engine, PROMPT, max_tokens=50)) == 50
    await wait_until_computed(engine)
    engine.close()
    assert vanished
