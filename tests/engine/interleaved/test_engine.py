"""The order of turns, with a runner that only records its calls."""

import asyncio
import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from granite_demo.engine.interleaved.engine import FIRST, SMALLEST, InterleavedEngine, PrefillPace
from granite_demo.errors import EngineError
from granite_demo.types.model_status import Fact
from granite_demo.types.sampling_params import SamplingParams
from tests.engine.running import answer, until, wait_idle

VOCABULARY = 1000


@dataclass(eq=False)
class ScriptedSlot:
    number: int
    ids: list[int] = field(default_factory=list)


class ScriptedRunner:
    """A runner whose next token after n is n + 1. It calls ``before`` each pass and takes ``seconds`` per token."""

    def __init__(self, slots: int = 4, chunk: int = 50, seconds: float = 0.0) -> None:
        self.facts: tuple[Fact, ...] = (("Runner", "scripted", "a test"),)
        self.slots = slots
        self.context_length = 10_000
        self.chunk = self.score_chunk = chunk
        self.seconds = seconds
        self.gate = threading.Event()
        self.gate.set()
        self.before: Callable[[Sequence[int]], None] = lambda ids: None
        self.log: list[tuple[int, int]] = []
        """(slot, tokens) of each forward pass."""
        self.opened: list[ScriptedSlot] = []
        self.events: list[tuple[str, int]] = []
        self.threads: set[str] = set()

    def open(self, prompt_ids: Sequence[int], salt: str = "") -> ScriptedSlot:
        self.opened.append(ScriptedSlot(len(self.opened)))
        return self.opened[-1]

    def forward(self, slot: ScriptedSlot, ids: Sequence[int], check: Callable[[], None]) -> torch.Tensor:
        self.threads.add(threading.current_thread().name)
        self.gate.wait(20)
        self.log.append((slot.number, len(ids)))
        self.before(ids)
        end = time.perf_counter() + self.seconds * len(ids)
        while time.perf_counter() < end:
            check()
            time.sleep(0.001)
        slot.ids += ids
        logits = torch.zeros(1, VOCABULARY)
        logits[0, (ids[-1] + 1) % VOCABULARY] = 1
        return logits

    def forward_all(self, slot: ScriptedSlot, ids: Sequence[int], check: Callable[[], None]) -> torch.Tensor:
        raise NotImplementedError

    def close(self, slot: ScriptedSlot) -> None:
        self.events.append(("close", slot.number))

    def discard(self, slot: ScriptedSlot) -> None:
        self.events.append(("discard", slot.number))

    def warm_up(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.facts += (("Warm", "yes", "known only now"),)

    def release(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.events.append(("release", 0))


@contextmanager
def running(runner: ScriptedRunner, **options: Any) -> Iterator[InterleavedEngine]:
    engine = InterleavedEngine(runner, options.pop("eos_ids", frozenset()), **options)
    yield engine
    engine.close()


# Turns


async def test_four_users_advance_together() -> None:
    runner = ScriptedRunner()
    with running(runner) as engine:
        runner.gate.clear()
        tasks = [asyncio.create_task(answer(engine, [index], max_tokens=100 + index)) for index in range(4)]
        await until(engine, running=4)
        runner.gate.set()
        assert [len(ids) for ids in await asyncio.gather(*tasks)] == [100, 101, 102, 103]
    counts = [0] * 4
    for slot, _ in runner.log:
        counts[slot] += 1
        if max(counts) <= 100:
            assert max(counts) - min(counts) <= 2
    assert counts == [100, 101, 102, 103]


async def test_a_long_prompt_does_not_block_the_others() -> None:
    runner = ScriptedRunner(chunk=50)
    with running(runner) as engine:
        quick = asyncio.create_task(answer(engine, [1, 2], max_tokens=100_000))
        await until(engine, running=1)
        assert await answer(engine, list(range(900)), max_tokens=1) == [900]
        quick.cancel()
        await asyncio.wait([quick])
    chunks = [index for index, (slot, _) in enumerate(runner.log) if slot == 1]
    assert len(chunks) == 900 / 50
    assert all((0, 1) in runner.log[a + 1 : b] for a, b in itertools.pairwise(chunks))


async def test_chunks_are_smaller_if_there_are_other_requests() -> None:
    # At 2,000 tokens per second, a chunk of a single request is limited to 1,000, and with other requests to 500.
    runner = ScriptedRunner(chunk=1000, seconds=0.0005)
    with running(runner) as engine:
        await answer(engine, list(range(1600)), max_tokens=1)
        alone = [count for _, count in runner.log]
        runner.log.clear()
        quick = asyncio.create_task(answer(engine, [1, 2], max_tokens=100_000))
        await until(engine, running=1)
        await answer(engine, list(range(900)), max_tokens=1)
        quick.cancel()
        await asyncio.wait([quick])
    assert alone[0] == FIRST
    assert alone[1] > 510
    beside = [count for slot, count in runner.log if slot == 2]
    assert max(beside) <= 510
    assert sum(beside) == 900


async def test_free_slots_are_used_before_requests_wait() -> None:
    with running(ScriptedRunner(slots=4), max_waiting=1) as engine:
        answers = await asyncio.gather(*(answer(engine, [1], max_tokens=50) for _ in range(5)))
    assert [len(ids) for ids in answers] == [50] * 5


async def test_no_more_run_than_there_are_slots() -> None:
    runner = ScriptedRunner(slots=2)
    with running(runner) as engine:
        runner.gate.clear()
        tasks = [asyncio.create_task(answer(engine, [1], max_tokens=20)) for _ in range(6)]
        await until(engine, running=2, waiting=4)
        runner.gate.set()
        await asyncio.gather(*tasks)
    assert {slot for slot, _ in runner.log[:40]} == {0, 1}
    assert {slot for slot, _ in runner.log} == set(range(6))


# What the model computes


async def test_the_last_token_is_not_computed() -> None:
    runner = ScriptedRunner(chunk=2)
    with running(runner, eos_ids=frozenset({12})) as engine:
        assert await answer(engine, [5, 6, 7], max_tokens=3) == [8, 9, 10]
        assert await answer(engine, [10], max_tokens=100) == [11, 12]
    assert [slot.ids for slot in runner.opened] == [[5, 6, 7, 8, 9], [10, 11]]
    assert runner.log == [(0, 2), (0, 1), (0, 1), (0, 1), (1, 1), (1, 1)]


async def test_tokens_in_the_slot_are_not_computed_again() -> None:
    runner = ScriptedRunner()
    runner.open = lambda prompt_ids, salt="": ScriptedSlot(7, list(prompt_ids[:3]))  # type: ignore[method-assign]
    with running(runner) as engine:
        assert await answer(engine, [1, 2, 3, 4, 5], max_tokens=2) == [6, 7]
    assert runner.log == [(7, 2), (7, 1)]


# Ends


async def test_a_slot_is_kept_after_an_answer_and_after_stop() -> None:
    runner = ScriptedRunner()
    with running(runner) as engine:
        await answer(engine, [1], max_tokens=3)
        async with aclosing(engine.generate([1], SamplingParams(max_tokens=100_000))) as items:
            await anext(items)
        await wait_idle(engine)
        assert runner.events == [("close", 0), ("close", 1)]


async def test_stop_cancels_a_running_chunk() -> None:
    runner = ScriptedRunner(seconds=10)
    with running(runner) as engine:
        task = asyncio.create_task(answer(engine, [1, 2], max_tokens=3))
        await until(engine, running=1)
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        assert await wait_idle(engine) < 1
        assert runner.events == [("close", 0)]
        assert runner.opened[0].ids == []


def fail(ids: Sequence[int], salt: str = "") -> None:
    raise ZeroDivisionError("secret")


async def test_a_slot_is_discarded_after_an_exception() -> None:
    runner = ScriptedRunner()
    with running(runner) as engine:
        runner.before = fail
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            await answer(engine, [1], max_tokens=3)
        runner.before = lambda ids: None
        assert await answer(engine, [1], max_tokens=3) == [2, 3, 4]
        assert runner.events == [("discard", 0), ("close", 1)]


@pytest.mark.parametrize("failing", ["close", "discard"])
async def test_a_slot_that_cannot_be_released_does_not_block_others(
    failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    runner = ScriptedRunner(slots=2)
    setattr(runner, failing, fail)
    with running(runner) as engine:
        runner.gate.clear()
        first = asyncio.create_task(answer(engine, [1], max_tokens=3))
        beside = asyncio.create_task(answer(engine, [5], max_tokens=50))
        await until(engine, running=2)
        if failing == "discard":
            runner.before = lambda ids: fail(ids) if ids[0] == 2 else None
        runner.gate.set()
        if failing == "discard":
            with pytest.raises(EngineError, match="ZeroDivisionError"):
                await first
        else:
            assert await first == [2, 3, 4]
        assert len(await beside) == 50
        await wait_idle(engine)
    assert "cannot be released" in caplog.text


async def test_a_slot_that_cannot_be_opened_fails_one_request() -> None:
    runner = ScriptedRunner()
    opens = runner.open
    runner.open = fail  # type: ignore[method-assign, assignment]
    with running(runner) as engine:
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            await answer(engine, [1], max_tokens=3)
        runner.open = opens  # type: ignore[method-assign]
        assert await answer(engine, [1], max_tokens=3) == [2, 3, 4]


@pytest.mark.parametrize("kind", [ZeroDivisionError, EngineError, torch.OutOfMemoryError])
async def test_an_error_does_not_hold_the_tensors_of_its_frames(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "granite_demo")  # captured records keep a reference
    held: list[weakref.ref[torch.Tensor]] = []

    def fail_with_a_tensor(ids: Sequence[int]) -> None:
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        raise kind("out of memory")

    runner = ScriptedRunner()
    runner.before = fail_with_a_tensor
    with running(runner) as engine:
        with pytest.raises(EngineError) as caught:
            await answer(engine, [1], max_tokens=3)
        assert caught.value
        assert held[0]() is None


async def test_the_slot_is_closed_before_the_end_reaches_the_reader() -> None:
    runner = ScriptedRunner()
    with running(runner) as engine:
        for number in range(20):
            await answer(engine, [1], max_tokens=1)
            assert runner.events[-1] == ("close", number)
            assert engine.stats().running == 0


# The thread


async def test_one_thread_makes_all_calls_and_releases_once() -> None:
    runner = ScriptedRunner()
    engine = InterleavedEngine(runner, frozenset())
    assert [name for name, _, _ in engine.facts] == ["Engine", "Runner"]
    engine.warm_up()
    assert [name for name, _, _ in engine.facts] == ["Engine", "Runner", "Warm"]
    await answer(engine, [1], max_tokens=3)
    engine.close()
    engine.close()
    assert runner.events == [("close", 0), ("release", 0)]
    assert len(runner.threads) == 1
    assert threading.current_thread().name not in runner.threads


async def test_an_error_in_warm_up_is_raised() -> None:
    runner = ScriptedRunner()
    runner.warm_up = lambda: fail([])  # type: ignore[method-assign]
    with running(runner) as engine, pytest.raises(ZeroDivisionError):
        engine.warm_up()


async def test_without_requests_the_engine_sleeps() -> None:
    with running(ScriptedRunner()) as engine:
        await answer(engine, [1], max_tokens=3)
        await wait_idle(engine)
        before = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - before < 0.2


# The size of chunks


def measured(tokens: int, seconds: float) -> PrefillPace:
    pace = PrefillPace()
    pace.record(tokens, seconds)
    return pace


def test_the_first_chunk_is_small() -> None:
    assert PrefillPace().size(2048, alone=True) == FIRST
    assert PrefillPace().size(8, alone=False) == 8


def test_a_chunk_takes_a_second_alone_and_a_quarter_with_others() -> None:
    pace = measured(64, 0.064)
    assert pace.size(2048, alone=True) == 1000
    assert pace.size(2048, alone=False) == 250


def test_a_chunk_has_a_minimum_and_a_maximum() -> None:
    assert measured(64, 0.001).size(2048, alone=False) == 2048
    assert measured(64, 60.0).size(2048, alone=True) == SMALLEST
    assert measured(64, 60.0).size(3, alone=True) == 3


def test_the_latest_speed_counts() -> None:
    pace = measured(64, 0.064)
    pace.record(1000, 2.0)
    assert pace.size(2048, alone=True) == 500


def test_the_end_of_a_prompt_is_ignored() -> None:
    pace = measured(64, 0.064)
    pace.record(SMALLEST - 1, 2.0)
    pace.record(64, 0.0)
    assert pace.size(2048, alone=True) == 1000
