"""The behaviours of every engine, and the fixtures that they need. ``test_contract`` has the engines."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from granite_demo.engine.protocol import Engine
from granite_demo.errors import EngineBusyError, EngineClosedError, EngineError
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.prompts.render import render_chat
from granite_demo.prompts.tokenizer import encode
from granite_demo.types.events import Queued
from granite_demo.types.logprobs import Token
from granite_demo.types.messages import Message
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams
from tests.engine.running import answer, reference, tiny_model, tokens, until, wait_idle

PROMPT = [5 + index * 7 % 50 for index in range(20)]
COMPANY = [[40, 3, 9, 12], [33] * 7, list(range(2, 50))]
POISON = 63
"""The token with which the tiny models can be made to fail."""
SAMPLED: dict[str, Any] = {"temperature": 1.0, "max_tokens": 60}
FLOAT32 = 1e-4
"""The tolerance for float32 logits."""
Effect = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Poisoned = Callable[[LoadedModel, Effect], AbstractContextManager[None]]


@contextmanager
def poisoned(loaded: LoadedModel, effect: Effect) -> Iterator[None]:
    """Call ``effect`` with the embeddings and the indices of the poison token, if it is in the input."""

    def hook(module: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        hit = arguments[0] == POISON
        return effect(output, hit) if hit.any() else None

    handle = loaded.model.get_input_embeddings().register_forward_hook(hook)
    yield
    handle.remove()


@dataclass(frozen=True)
class Row:
    """One engine."""

    name: str
    make: Callable[[LoadedModel, int], Engine]
    """Makes the engine from a model and the maximum number of waiting requests."""
    slots: int = 4
    """The number of simultaneous requests, at least 4."""
    long: int = 150
    """Tokens of an answer that takes longer than others take to join the line."""
    skips: frozenset[str] = frozenset()
    """The names of the behaviours that this engine cannot have."""
    model: Callable[..., LoadedModel] = tiny_model
    """Makes the tiny model, the same each time."""
    noise: float = FLOAT32
    """The tolerance for logits. With the default, the tokens must be those of ``generate``."""
    poisoned: Poisoned = poisoned
    """Makes a model, or its engine, fail with the poison token."""


class Ground:
    """An engine with the sample, and engines with tiny models."""

    def __init__(self, row: Row, sample: LoadedModel) -> None:
        self.row = row
        self.sample = sample

    @cached_property
    def engine(self) -> Engine:
        """The engine with the sample, made once."""
        return self.row.make(self.sample, 64)

    @contextmanager
    def tiny(self, loaded: LoadedModel | None = None, max_waiting: int = 64) -> Iterator[Engine]:
        """Yield an engine with a tiny model."""
        engine = self.row.make(loaded or self.row.model(), max_waiting)
        try:
            yield engine
        finally:
            engine.close()

    def fill(self, engine: Engine, max_tokens: int = 400) -> list["asyncio.Task[list[int]]"]:
        """Start a request for each slot."""
        return [
            asyncio.create_task(answer(engine, [1 + index, 2, 3], max_tokens=max_tokens))
            for index in range(self.row.slots)
        ]

    def check(self, loaded: LoadedModel, prompt: list[int], ours: list[int], adjust: "Adjust | None" = None) -> None:
        """See ``assert_greedy``."""
        assert_greedy(loaded, prompt, ours, self.row.noise, adjust)

    def close(self) -> None:
        """Close the engine with the sample, if it was made."""
        if "engine" in self.__dict__:
            self.engine.close()


Adjust = Callable[[torch.Tensor, list[int]], torch.Tensor]
"""Takes the logits of the next token, shape (vocabulary,), and the answer so far. Returns the changed logits."""


def logits_of(loaded: LoadedModel, prompt: list[int], answered: list[int]) -> torch.Tensor:
    """Return the logits for each token of an answer, from one pass: (tokens, vocabulary), on the CPU."""
    with torch.no_grad():
        logits = loaded.model(torch.tensor([prompt + answered], device=loaded.model.device)).logits
    rows: torch.Tensor = logits[0, len(prompt) - 1 : -1].float().cpu()
    return rows


def assert_greedy(
    loaded: LoadedModel, prompt: list[int], ours: list[int], noise: float, adjust: Adjust | None = None
) -> None:
    """Check that each token has the largest logit after ``adjust``. A few tokens can be below it within ``noise``."""
    rows = logits_of(loaded, prompt, ours)
    if adjust:
        rows = torch.stack([adjust(row, ours[:at]) for at, row in enumerate(rows)])
    gaps = rows.max(dim=1).values - rows[range(len(ours)), ours]
    assert gaps.max() <= noise, gaps
    assert (gaps > 0).sum() <= 1 + len(ours) // 5, gaps


Behaviour = Callable[[Ground], Awaitable[None]]
BEHAVIOURS: list[Behaviour] = []


def behaviour(function: Behaviour) -> Behaviour:
    """Add a function to the list."""
    BEHAVIOURS.append(function)
    return function


# Answers


EXPECTED: dict[tuple[int, str], list[int]] = {}
"""The answer of ``generate``, cached: it takes seconds and is the same for every engine."""


@behaviour
async def greedy_equals_generate(ground: Ground) -> None:
    for text in ("Write a story about a lighthouse.", "List the planets and say one thing each.", "def quicksort("):
        prompt = render_chat(ground.sample.tokenizer, GenerationRequest((Message("user", text),)))
        ours = await answer(ground.engine, prompt, max_tokens=12)
        assert len(ours) == 12 or ours[-1] in ground.sample.eos_ids
        if ground.row.noise > FLOAT32:
            ground.check(ground.sample, prompt, ours)
            continue
        if (key := (id(ground.sample), text)) not in EXPECTED:
            EXPECTED[key] = reference(ground.sample, prompt, 12)
        assert ours == EXPECTED[key]


@behaviour
async def company_does_not_change_a_sampled_answer(ground: Ground) -> None:
    with ground.tiny() as engine:
        alone = await answer(engine, PROMPT, seed=1, **SAMPLED)
        others = [answer(engine, prompt, seed=2, **SAMPLED) for prompt in COMPANY]
        beside, *_ = await asyncio.gather(answer(engine, PROMPT, seed=1, **SAMPLED), *others)
    assert beside == alone


@behaviour
async def a_seed_repeats_and_another_differs(ground: Ground) -> None:
    with ground.tiny() as engine:
        first, again, other = [await answer(engine, PROMPT, seed=seed, **SAMPLED) for seed in (1, 1, 2)]
    assert first == again
    assert first != other


@behaviour
async def sampling_from_one_token_is_greedy(ground: Ground) -> None:
    loaded = ground.row.model()
    with ground.tiny(loaded) as engine:
        greedy = await answer(engine, PROMPT, max_tokens=60, seed=5)
        ground.check(loaded, PROMPT, greedy)
        assert await answer(engine, PROMPT, seed=5, **SAMPLED) != greedy
        for cut in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 0.001}):
            ground.check(loaded, PROMPT, await answer(engine, PROMPT, seed=5, **SAMPLED, **cut))


@behaviour
async def each_cut_changes_a_sampled_answer(ground: Ground) -> None:
    wild: dict[str, Any] = {"max_tokens": 60, "temperature": 2.0, "seed": 3}
    cuts: list[dict[str, Any]] = [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3}, {"repetition_penalty": 1.5}]
    with ground.tiny() as engine:
        answers = [await answer(engine, PROMPT, **wild, **cut) for cut in cuts]
    assert len(set(map(tuple, answers))) == len(cuts)


@behaviour
async def the_repetition_penalty_is_that_of_generate(ground: Ground) -> None:
    penalise = RepetitionPenaltyLogitsProcessor(1.3)
    loaded = ground.row.model()
    with ground.tiny(loaded) as engine:
        plain = await answer(engine, PROMPT, max_tokens=60)
        ours = await answer(engine, PROMPT, max_tokens=60, repetition_penalty=1.3)
        assert ours != plain
        ground.check(loaded, PROMPT, ours, lambda row, said: penalise(torch.tensor([PROMPT + said]), row[None])[0])


@behaviour
async def log_probabilities_equal_a_forward_pass(ground: Ground) -> None:
    prompt = encode(ground.sample.tokenizer, "The capital of France is")
    off = max(ground.row.noise, 1e-3)
    for sampling in ({}, {"temperature": 1.0, "top_k": 20, "repetition_penalty": 1.2, "seed": 4}):
        got = await tokens(ground.engine, prompt, max_tokens=8, logprobs=5, **sampling)
        expected = logits_of(ground.sample, prompt, [token.id for token in got]).log_softmax(dim=-1)
        for token, row in zip(got, expected, strict=True):
            assert token.logprob == pytest.approx(float(row[token.id]), abs=off)
            alternatives, values, _ = zip(*token.alternatives, strict=True)
            assert list(values) == sorted(values, reverse=True)
            assert values == pytest.approx(row.topk(5).values.tolist(), abs=off)
            assert [float(row[index]) for index in alternatives] == pytest.approx(list(values), abs=off)


@behaviour
async def as_many_alternatives_as_asked_for(ground: Ground) -> None:
    with ground.tiny() as engine:
        for wanted, (chosen, others) in {None: (False, 0), 0: (True, 0), 1: (True, 1), 20: (True, 20)}.items():
            for token in await tokens(engine, PROMPT, max_tokens=3, logprobs=wanted):
                assert ((token.logprob is not None), len(token.alternatives)) == (chosen, others)


# Caches of earlier requests


@behaviour
async def a_later_turn_equals_an_answer_without_cache(ground: Ground) -> None:
    loaded = ground.row.model()
    with ground.tiny(loaded) as engine:
        prompt = PROMPT
        for turn in range(4):
            said = await answer(engine, prompt, max_tokens=20)
            assert len(said) == 20
            ground.check(loaded, prompt, said)
            prompt = [*prompt, *said, 7 + turn, 8, 9]


@behaviour
async def an_edited_turn_equals_an_answer_without_cache(ground: Ground) -> None:
    loaded = ground.row.model()
    with ground.tiny(loaded) as engine:
        for kept in (20, 15, 1, 19, 12):
            # The cache has only the prompt, of which more or less than half can be reused.
            ground.check(loaded, PROMPT, await answer(engine, PROMPT, max_tokens=1))
            prompt = [*PROMPT[:kept], *range(30, 40)]
            ground.check(loaded, prompt, await answer(engine, prompt, max_tokens=20))


@behaviour
async def a_retry_equals_an_answer_without_cache(ground: Ground) -> None:
    loaded = ground.row.model()
    with ground.tiny(loaded) as engine:
        # After one token, the cache has only the prompt. After 20, it also has most of the answer.
        for count in (1, 1, 20, 20):
            ground.check(loaded, PROMPT, await answer(engine, PROMPT, max_tokens=count))
        ground.check(loaded, PROMPT[:10], await answer(engine, PROMPT[:10], max_tokens=20))


# How an answer ends


@behaviour
async def max_tokens_is_exact(ground: Ground) -> None:
    with ground.tiny() as engine:
        for count in (1, 2, 7):
            assert len(await answer(engine, PROMPT, max_tokens=count)) == count


@behaviour
async def max_tokens_is_needed(ground: Ground) -> None:
    with ground.tiny() as engine, pytest.raises(ValueError, match="max_tokens"):
        await answer(engine, PROMPT)


@behaviour
async def an_end_token_is_the_last(ground: Ground) -> None:
    with ground.tiny() as engine:
        plain = await answer(engine, PROMPT, max_tokens=10)
    end = plain[4]
    with ground.tiny(ground.row.model(eos_ids=frozenset({end}))) as engine:
        assert await answer(engine, PROMPT, max_tokens=10) == plain[: plain.index(end) + 1]


@behaviour
async def a_cancel_in_the_middle_frees_the_engine_within_a_second(ground: Ground) -> None:
    prompt = encode(ground.sample.tokenizer, "Once upon a time")
    async with aclosing(ground.engine.generate(prompt, SamplingParams(max_tokens=1000))) as items:
        async for _ in items:
            break
    assert await wait_idle(ground.engine) < 1


@behaviour
async def a_cancel_before_the_first_token_frees_the_engine_within_a_second(ground: Ground) -> None:
    prompt = encode(ground.sample.tokenizer, "word " * 2500)
    task = asyncio.create_task(answer(ground.engine, prompt, max_tokens=1000))
    await until(ground.engine, running=1)
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.wait([task])
    assert await wait_idle(ground.engine) < 1


@behaviour
async def closing_ends_all_with_an_error(ground: Ground) -> None:
    with ground.tiny() as engine:
        tasks = ground.fill(engine) + ground.fill(engine)
        while not engine.stats().running:
            await asyncio.sleep(0)
        await asyncio.to_thread(engine.close)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} == {EngineClosedError}
        with pytest.raises(EngineClosedError):
            await answer(engine, PROMPT, max_tokens=5)


# Waiting


@behaviour
async def queue_positions_fall_to_the_front(ground: Ground) -> None:
    async def positions(prompt: list[int]) -> list[int]:
        items = [item async for item in engine.generate(prompt, SamplingParams(max_tokens=5))]
        waits = [item.ahead for item in items if isinstance(item, Queued)]
        assert all(isinstance(item, Token) for item in items[len(waits) :]), "a place after a token"
        return waits

    with ground.tiny() as engine:
        running = [
            asyncio.create_task(answer(engine, PROMPT, max_tokens=ground.row.long + 20 * index))
            for index in range(ground.row.slots)
        ]
        await until(engine, ground.row.slots)
        waiting = []
        for index in range(3):
            waiting.append(asyncio.create_task(positions([9, 8, 7])))
            await until(engine, ground.row.slots, index + 1)
        for index, task in enumerate(waiting):
            assert await task == list(range(index, -1, -1))
        await asyncio.gather(*running)


@behaviour
async def a_full_queue_refuses(ground: Ground) -> None:
    with ground.tiny(max_waiting=2) as engine:
        taken = ground.fill(engine, ground.row.long)
        await until(engine, ground.row.slots)
        taken += [asyncio.create_task(answer(engine, PROMPT, max_tokens=ground.row.long)) for _ in range(2)]
        await until(engine, ground.row.slots, 2)
        with pytest.raises(EngineBusyError, match="2 requests are waiting"):
            await answer(engine, PROMPT, max_tokens=5)
        assert [len(ids) for ids in await asyncio.gather(*taken)] == [ground.row.long] * (ground.row.slots + 2)


@behaviour
async def a_cancelled_waiting_request_ends_within_a_second(ground: Ground) -> None:
    with ground.tiny() as engine:
        running = ground.fill(engine, 200)
        await until(engine, ground.row.slots)
        first, second = (asyncio.create_task(answer(engine, PROMPT, max_tokens=20)) for _ in range(2))
        await until(engine, ground.row.slots, 2)
        first.cancel()
        async with asyncio.timeout(1):
            await until(engine, ground.row.slots, 1)
        assert len(await second) == 20
        await asyncio.gather(*running)


@behaviour
async def an_abandoned_stream_does_not_block_the_next(ground: Ground) -> None:
    with ground.tiny() as engine:
        slow = engine.generate(PROMPT, SamplingParams(max_tokens=20))
        await anext(slow)
        # The stream is not read and not closed, so its tokens stay in its queue.
        assert len(await answer(engine, PROMPT, max_tokens=5)) == 5
        await wait_idle(engine)
        await slow.aclose()


# Failures


async def one_fails_beside_three(ground: Ground, effect: Effect) -> EngineError:
    """Return the error of a poisoned request, which must not affect the other requests."""
    loaded = ground.row.model()
    with torch.no_grad():
        loaded.model.lm_head.weight[POISON] = 0  # so that no answer has it
    with ground.row.poisoned(loaded, effect), ground.tiny(loaded) as engine:
        beside = [asyncio.create_task(answer(engine, prompt, max_tokens=200)) for prompt in COMPANY]
        await until(engine, running=3)
        with pytest.raises(EngineError) as caught:
            await asyncio.wait_for(answer(engine, [*PROMPT, POISON, 3], max_tokens=5), 20)
        assert engine.stats().running == 3, "the others had ended before"
        for prompt, said in zip(COMPANY, await asyncio.gather(*beside), strict=True):
            assert len(said) == 200
            ground.check(loaded, prompt, said)
        ground.check(loaded, PROMPT, await answer(engine, PROMPT, max_tokens=20))
        await wait_idle(engine)
    return caught.value


@behaviour
async def an_exception_fails_one_request_only(ground: Ground) -> None:
    def fail(output: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("secret")

    error = await one_fails_beside_three(ground, fail)
    assert "ZeroDivisionError" in error.user_text
    assert "secret" not in error.user_text
    assert error.__traceback__ is None or "forward" not in str(error.__traceback__.tb_frame)


@behaviour
async def out_of_memory_fails_one_request_only(ground: Ground) -> None:
    def fail(output: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    assert "Use a shorter prompt" in (await one_fails_beside_three(ground, fail)).user_text


@behaviour
async def not_a_number_fails_one_request_only(ground: Ground) -> None:
    error = await one_fails_beside_three(ground, lambda output, hit: output.masked_fill(hit[..., None], float("nan")))
    assert "not a number" in error.user_text


# Rare options


@behaviour
async def penalties_and_bias_are_those_of_plain_arithmetic(ground: Ground) -> None:
    bias = ((5, 2.0), (40, -100.0))

    def adjust(row: torch.Tensor, said: list[int]) -> torch.Tensor:
        for index, value in bias:
            row[index] += value
        for index in set(said):
            row[index] -= 0.5 * said.count(index) + 0.3
        return row

    loaded = ground.row.model()
    sampling: dict[str, Any] = {"frequency_penalty": 0.5, "presence_penalty": 0.3, "logit_bias": bias}
    with ground.tiny(loaded) as engine:
        ours = await answer(engine, PROMPT, max_tokens=40, **sampling)
        ground.check(loaded, PROMPT, ours, adjust)
        plain = await answer(engine, PROMPT, max_tokens=40)
        ground.check(loaded, PROMPT, plain)
    assert len(ours) == 40
    assert ours != plain
