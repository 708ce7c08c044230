"""The changes to the continuous batching of transformers, with a tiny model."""

import gc
import logging
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers.generation.continuous_batching.distributed import DistributedHelper
from transformers.generation.continuous_batching.requests import RequestState
from transformers.generation.continuous_batching.scheduler import FIFOScheduler

from granite_demo.engine.batching import loop as continuous
from granite_demo.engine.batching.loop import PAGE, TURN_SECONDS, Loop, Router
from granite_demo.engine.batching.sampler import BatchSampler, Row
from granite_demo.types.sampling_params import SamplingParams
from tests.engine.running import has_work, tiny_model

CPU = torch.device("cpu")


@contextmanager
def loop_over(model: Any, received: list[Any]) -> Iterator[Loop]:
    """Return a loop whose thread does not run."""
    sampler = BatchSampler(64, 4, CPU)
    loop = Loop(model, sampler, received.extend, tokens=4096, context=512, requests=4, prefill=512)
    try:
        yield loop
    finally:
        loop.stop()


def submit(loop: Loop, name: str, prompt: list[int], max_tokens: int) -> None:
    loop.submit(name, prompt, [], Row(SamplingParams(max_tokens=max_tokens), 0, len(prompt)))


def cancel_in_flight() -> None:
    """Simulate asynchronous batching in which a request is cancelled while its batch completes a block of the cache.

    On a CPU batching is synchronous, so the steps are called one by one in the order that they have on a GPU.
    """
    model = tiny_model().model
    with loop_over(model, []) as loop:
        processor = loop._manager.batch_processor
        processor.use_async_batching = True
        submit(loop, "a", [1] * PAGE, 5)
        assert processor.prepare_next_batch()
        processor._generation_step(model)
        loop.cancel("a")
        processor.prepare_next_batch()
        processor.update_batch()
        assert not has_work(loop)


def test_a_cancelled_request_does_not_end_the_loop() -> None:
    cancel_in_flight()


def test_a_cancelled_request_ends_the_loop_with_the_scheduler_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    # When this test fails, loop.Scheduler is no longer necessary.
    monkeypatch.setattr(continuous, "Scheduler", FIFOScheduler)
    with pytest.raises(KeyError, match="a"):
        cancel_in_flight()


def test_the_router_passes_steps_and_failures() -> None:
    steps: list[list[Any]] = []
    router = Router(steps.append)
    outputs: list[Any] = [RequestState("a", [1]).to_generation_output(), RequestState("b", [1]).to_generation_output()]
    router.deliver_batch(outputs)
    router.fail_and_deliver(RequestState("c", [1]), ValueError("broken"))
    assert steps[0] == outputs
    assert [(output.request_id, output.error) for output in steps[1]] == [("c", "broken")]
    assert router.output_queue.empty()


def run(loop: Loop, received: list[Any], name: str) -> list[int]:
    """Return the tokens of a finished request."""
    for _ in range(4000):
        if any(output.request_id == name and output.is_finished() for output in list(received)):
            break
        assert loop.is_running()
        time.sleep(0.005)
    tokens: list[int] = received[-1].generated_tokens
    return tokens


def test_a_failed_loop_has_an_error_and_starts_again_empty(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model().model
    received: list[Any] = []

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("broken")

    caplog.set_level(
        logging.CRITICAL + 1, "ContinuousBatchingLogger"
    )  # the traceback of a log record keeps the cache in memory
    with loop_over(model, received) as loop:
        hook = model.model.layers[0].register_forward_pre_hook(fail)
        loop.start()
        submit(loop, "a", [1, 2, 3], 5)
        assert isinstance(loop.ended_by(), ZeroDivisionError)
        assert not loop.is_running()
        assert [(output.request_id, output.error) for output in received] == [("a", "broken")]
        hook.remove()
        # The engine submits new requests again, under other names.
        submit(loop, "late", [1, 2, 3], 5)
        loop.cancel("late")
        submit(loop, "late", [1, 2, 3], 5)
        cache = weakref.ref(loop._manager.batch_processor.cache)
        loop.restart()
        assert cache() is None
        submit(loop, "b", [1, 2, 3], 5)
        assert len(run(loop, received, "b")) == 5
        assert {output.request_id for output in received} == {"a", "b"}
        assert not has_work(loop)


@pytest.mark.release
def test_a_request_continues_from_a_part_of_its_answer() -> None:
    model = tiny_model().model
    received: list[Any] = []
    sampling = SamplingParams(temperature=1.0, seed=3, max_tokens=12, repetition_penalty=1.2)
    with loop_over(model, received) as loop:
        loop.start()
        loop.submit("whole", [1, 2, 3], [], Row(sampling, 0, 3))
        whole = run(loop, received, "whole")
        loop.submit("rest", [1, 2, 3, *whole[:5]], [], Row(sampling, 1, 3))
        assert run(loop, received, "rest") == whole[5:]
    assert len(whole) == 12


def test_stop_drops_the_model() -> None:
    loaded = tiny_model()
    model = weakref.ref(loaded.model)
    received: list[Any] = []
    with loop_over(loaded.model, received) as loop:
        loop.start()
        submit(loop, "a", [1, 2, 3], 5)
        run(loop, received, "a")
    del loaded
    gc.collect()
    assert model() is None
    assert loop is not None


def test_a_cache_that_does_not_fit_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        Loop(
            tiny_model().model,
            BatchSampler(64, 4, CPU),
            print,
            tokens=10**11,
            context=512,
            requests=4,
            prefill=512,
        )


def shared_after_a_long_prompt() -> int:
    """Return how many cached tokens a second request shares with a first one of three chunks, with steps as on a GPU.

    On a GPU, the next step is scheduled before the outputs of the previous one are processed.
    """
    model = tiny_model(context_length=2048).model
    prompt = [1 + index % 60 for index in range(1400)]
    with loop_over(model, []) as loop:
        processor = loop._manager.batch_processor
        processor.use_async_batching = processor.scheduler.asynchronous = True
        submit(loop, "a", prompt, 5)
        batches: list[Any] = []
        for _ in range(3):
            assert processor.prepare_next_batch()
            batches.append(list(processor.inputs_and_outputs.requests_in_batch))
            processor._generation_step(model)
            if len(batches) > 1:
                take_back(processor, batches[-2])
        take_back(processor, batches[-1])
        return int(processor.cache.search_prefix_match("b", prompt))


def take_back(processor: Any, batch: list[Any]) -> None:
    """Update a batch after the next one was prepared."""
    outputs = processor.inputs_and_outputs
    outputs.requests_in_batch = batch
    outputs.num_request_in_batch = len(batch)
    processor.update_batch()


def test_all_chunks_of_a_prompt_are_shared() -> None:
    assert shared_after_a_long_prompt() == 1280


def test_one_chunk_is_not_shared_with_the_scheduler_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous.Scheduler, "schedule_batch", FIFOScheduler.schedule_batch)
    assert shared_after_a_long_prompt() < 1280


def test_a_following_process_never_waits_for_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    for drives in (True, False):
        monkeypatch.setattr(DistributedHelper, "infer_if_tp_driver", lambda self, drives=drives: drives)
        with loop_over(tiny_model().model, []) as loop:
            loop._manager._wake_up_loop.clear()
            assert loop._manager._wake_up_loop.wait(0) is not drives


def test_threads_switch_fast_if_steps_are_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = sys.getswitchinterval()
    with loop_over(tiny_model().model, []) as loop:
        loop.start()
        assert sys.getswitchinterval() == usual
    monkeypatch.setattr(Loop, "wants_graphs", True)
    try:
        with loop_over(tiny_model().model, []) as loop:
            loop.start()
            assert sys.getswitchinterval() == pytest.approx(TURN_SECONDS)
    finally:
        sys.setswitchinterval(usual)
