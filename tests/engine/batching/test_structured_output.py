"""Constrained answers in both engines: only allowed tokens are chosen, and nothing else changes."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any, cast

import numpy as np
import pytest
import torch

from granite_demo.engine.protocol import Engine
from granite_demo.errors import EngineClosedError, EngineError, InvalidRequestError
from granite_demo.outputs.structured_output import Matcher
from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import SamplingParams
from tests.engine.contract import COMPANY, POISON, PROMPT, poisoned
from tests.engine.running import answer, batching_engine, dynamic_engine, tiny_model, tokens, wait_idle

VOCABULARY = 64
WILD: dict[str, Any] = {
    "temperature": 1.5,
    "top_p": 0.95,
    "seed": 3,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.7,
    "presence_penalty": 0.5,
    "logit_bias": ((5, 3.0), (9, -100.0)),
}
engines = pytest.mark.parametrize("make", [dynamic_engine, batching_engine])
samplings = pytest.mark.parametrize("sampling", [{}, WILD], ids=["greedy", "sampled"])


class Cycle:
    """A matcher that allows one set of tokens after another, and fails after ``failing`` tokens."""

    def __init__(self, sets: Sequence[Sequence[int]], failing: int | None = None, error: Exception | None = None):
        self.sets, self.failing, self.error = sets, failing, error
        self.accepted: list[int] = []
        self.ended = False

    def allowed(self) -> np.ndarray:
        if self.error and len(self.accepted) == self.failing:
            raise self.error
        mask = np.zeros(VOCABULARY, dtype=bool)
        mask[list(self.sets[len(self.accepted) % len(self.sets)])] = True
        return mask

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)


async def constrained(engine: Engine, matcher: Cycle, prompt: Sequence[int] = PROMPT, **sampling: Any) -> list[Token]:
    async with (
        asyncio.timeout(60),
        aclosing(engine.generate(prompt, SamplingParams(**sampling), cast(Matcher, matcher))) as items,
    ):
        return [item async for item in items if isinstance(item, Token)]


@engines
@samplings
async def test_without_restrictions_the_answer_does_not_change(
    make: Callable[..., Any], sampling: dict[str, Any]
) -> None:
    engine = make(tiny_model())
    usual = await tokens(engine, PROMPT, max_tokens=40, logprobs=3, **sampling)
    matcher = Cycle([range(VOCABULARY)])
    got = await constrained(engine, matcher, max_tokens=40, logprobs=3, **sampling)
    assert [token.id for token in got] == [token.id for token in usual]
    for one, other in zip(got, usual, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert one.sampled == pytest.approx(other.sampled, abs=1e-3)
    engine.close()


@engines
@samplings
async def test_only_allowed_tokens_are_chosen(make: Callable[..., Any], sampling: dict[str, Any]) -> None:
    engine = make(tiny_model())
    sets = [(1, 2, 3), (9,), tuple(range(40, 60))]
    matcher = Cycle(sets)
    beside = [asyncio.create_task(answer(engine, prompt, max_tokens=60)) for prompt in COMPANY]
    got = await constrained(engine, matcher, max_tokens=30, logprobs=20, **sampling)
    assert len(got) == 30
    for at, token in enumerate(got):
        allowed = sets[at % 3]
        assert token.id in allowed
        drawn = {index: after for index, _, after in token.alternatives if after is not None and after > -np.inf}
        assert set(drawn) <= set(allowed)
        assert sum(np.exp(after) for after in drawn.values()) <= 1 + 1e-4
        if allowed == (9,):
            assert token.sampled == pytest.approx(0)
            assert token.logprob is not None
            assert token.logprob < -0.01  # before the mask
    together = await asyncio.gather(*beside)
    assert together == [await answer(engine, prompt, max_tokens=60) for prompt in COMPANY]
    engine.close()


@engines
@pytest.mark.parametrize("failing", [0, 4])
async def test_an_error_of_the_matcher_ends_only_its_request(make: Callable[..., Any], failing: int) -> None:
    engine = make(tiny_model())
    beside = asyncio.create_task(answer(engine, PROMPT, max_tokens=100))
    error = InvalidRequestError("It takes too long.")
    with pytest.raises(InvalidRequestError, match="takes too long"):
        await constrained(engine, Cycle([range(VOCABULARY)], failing, error), max_tokens=20)
    with pytest.raises(EngineError, match="No token can follow"):
        await constrained(engine, Cycle([(1,), ()]), max_tokens=20)
    assert len(await beside) == 100
    assert len(await answer(engine, PROMPT, max_tokens=5)) == 5
    await wait_idle(engine)
    engine.close()


@engines
async def test_the_answer_ends_with_an_end_token_or_at_the_limit(make: Callable[..., Any]) -> None:
    engine = make(tiny_model(eos_ids=frozenset({7})))
    got = await constrained(engine, Cycle([(1,), (2,), (7,)]), max_tokens=30)
    assert [token.id for token in got] == [1, 2, 7]
    assert len(await constrained(engine, Cycle([(1,), (2,)]), max_tokens=5)) == 5
    engine.close()


@engines
async def test_after_a_cancel_the_engine_is_idle_within_a_second(make: Callable[..., Any]) -> None:
    engine = make(tiny_model())
    matcher = cast(Matcher, Cycle([range(VOCABULARY)]))
    async with aclosing(engine.generate(PROMPT, SamplingParams(max_tokens=400), matcher)) as items:
        seen = 0
        async for _ in items:
            seen += 1
            if seen == 5:
                break
    assert await wait_idle(engine) < 1
    engine.close()


@pytest.mark.release
async def test_a_constrained_request_keeps_its_slot_while_others_wait() -> None:
    engine = batching_engine(tiny_model(), requests=2)
    long = asyncio.create_task(answer(engine, PROMPT, max_tokens=400))
    matcher = Cycle([range(VOCABULARY)])
    mine = asyncio.create_task(constrained(engine, matcher, max_tokens=30))
    await asyncio.sleep(0.05)
    later = asyncio.create_task(answer(engine, [1, 2], max_tokens=100))
    assert len(await mine) == 30
    assert not long.done()
    assert not later.done()
    assert len(await later) == 100
    await long
    assert sorted(engine._slots.free) == [0, 1]
    engine.close()


class Slow(Cycle):
    """A matcher that allows all tokens. Its third mask takes until ``may_end`` is set."""

    def __init__(self) -> None:
        super().__init__([range(VOCABULARY)])
        self.begun, self.may_end = threading.Event(), threading.Event()

    def allowed(self) -> np.ndarray:
        if len(self.accepted) == 2:
            self.begun.set()
            assert self.may_end.wait(20)
        return super().allowed()


async def test_others_continue_while_a_mask_is_computed() -> None:
    engine = batching_engine(tiny_model())
    matcher = Slow()
    mine = asyncio.create_task(constrained(engine, matcher, max_tokens=10))
    await asyncio.to_thread(matcher.begun.wait)
    assert len(await answer(engine, PROMPT, max_tokens=20)) == 20
    assert engine.stats().running == 1
    matcher.may_end.set()
    assert len(await mine) == 10
    assert sorted(engine._slots.free) == [0, 1, 2, 3]
    engine.close()


@pytest.mark.parametrize("ended", ["cancelled", "closed"])
async def test_a_request_can_end_while_its_mask_is_computed(ended: str) -> None:
    engine = batching_engine(tiny_model())
    matcher = Slow()
    mine = asyncio.create_task(constrained(engine, matcher, max_tokens=10))
    await asyncio.to_thread(matcher.begun.wait)
    if ended == "cancelled":
        mine.cancel()
        assert await wait_idle(engine) < 1
        assert sorted(engine._slots.free) == [0, 1, 2, 3]
        matcher.may_end.set()
        assert len(await answer(engine, PROMPT, max_tokens=20)) == 20
    else:
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineClosedError):
            await mine
        matcher.may_end.set()
    engine.close()


@engines
async def test_a_bias_on_an_unknown_token_is_refused(make: Callable[..., Any]) -> None:
    engine = make(tiny_model())
    with pytest.raises(InvalidRequestError, match="token 64"):
        await answer(engine, PROMPT, max_tokens=3, logit_bias=((VOCABULARY, 1.0),))
    assert len(await answer(engine, PROMPT, max_tokens=3)) == 3
    engine.close()


async def test_after_a_failure_of_another_request_it_continues() -> None:
    def fail(output: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("broken")

    loaded = tiny_model()
    sets = [tuple(range(30)), tuple(range(20, POISON))]
    sampling = {**WILD, "max_tokens": 60}
    bias = {**sampling, "logit_bias": ((POISON, -100.0),)}
    engine = batching_engine(loaded)
    expected = [token.id for token in await constrained(engine, Cycle(sets), **sampling)]
    expected_beside = await answer(engine, PROMPT, **bias)
    engine.close()
    with poisoned(loaded, fail):
        engine = batching_engine(loaded)
        matcher = Cycle(sets)
        mine = asyncio.create_task(constrained(engine, matcher, **sampling))
        beside = asyncio.create_task(answer(engine, PROMPT, **bias))
        while len(matcher.accepted) < 10:
            await asyncio.sleep(0.001)
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            await answer(engine, [POISON], max_tokens=5)
        assert [token.id for token in await mine] == expected
        assert await beside == expected_beside
        assert engine.stats().restarts >= 1
        engine.close()
