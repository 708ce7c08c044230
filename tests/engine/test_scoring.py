"""Scoring of a text: each engine computes it from its first token and passes the logits after each token."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest
import torch

from granite_demo.engine import protocol
from granite_demo.engine.batching import scorer as batch_scoring
from granite_demo.engine.batching.engine import BatchingEngine
from granite_demo.engine.protocol import Engine
from granite_demo.errors import (
    ContextOverflowError,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    InvalidRequestError,
)
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.loading.tensor_parallel import Group
from granite_demo.models import catalogue
from granite_demo.prompts.tokenizer import encode
from granite_demo.types.events import Queued
from tests.engine.contract import COMPANY, POISON, PROMPT, poisoned
from tests.engine.running import (
    answer,
    batching_engine,
    dynamic_engine,
    one_thread,
    static_engine,
    tiny_model,
    tokens,
    until,
    wait_idle,
)
from tests.loaded import load_checkpoint
from tests.tinymodels import write_checkpoint

TEXT = "The lighthouse keeper had not spoken to anybody since the storm. Paris is the capital of France; 17 + 4 = 21."
Make = Callable[..., Any]
ENGINES = {"dynamic": dynamic_engine, "static": static_engine, "batching": batching_engine}
every_engine = pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
interleaved = pytest.mark.parametrize("make", [dynamic_engine, static_engine], ids=["dynamic", "static"])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit chunks to seven tokens of a tiny vocabulary, so that every text has several chunks."""
    monkeypatch.setattr(protocol, "SCORE_BYTES", 7 * 4 * 64)


def keep(position: int, logits: torch.Tensor) -> tuple[int, torch.Tensor]:
    assert logits.dtype == torch.float32
    return position, torch.log_softmax(logits, dim=-1).cpu()


async def score(engine: Engine, ids: list[int]) -> torch.Tensor:
    """Return the log probabilities after each token, shape (n, vocabulary)."""
    async with asyncio.timeout(60):
        chunks = [item async for item in engine.score(ids, keep) if not isinstance(item, Queued)]
    ends = [position + len(rows) for position, rows in chunks]
    assert [position for position, _ in chunks] == [0, *ends[:-1]]
    return torch.cat([rows for _, rows in chunks])


def plain(loaded: LoadedModel, ids: list[int]) -> torch.Tensor:
    """Return the same from one pass of transformers."""
    with torch.no_grad():
        return torch.log_softmax(loaded.model(torch.tensor([ids])).logits[0].float(), dim=-1)


@every_engine
async def test_log_probabilities_equal_a_forward_pass(
    make: Make, sample: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "SCORE_BYTES", 20 * 4 * sample.model.config.vocab_size)
    ids = encode(sample.tokenizer, TEXT)
    expected = plain(sample, ids)
    with closing(make(sample)) as engine:
        assert torch.allclose(await score(engine, ids), expected, atol=1e-3)
        assert torch.allclose(await score(engine, ids[:1]), expected[:1], atol=1e-3)
        # Generated tokens have the same log probabilities as scored ones.
        wrote = await tokens(engine, ids, max_tokens=6, logprobs=0)
        rows = (await score(engine, ids + [token.id for token in wrote]))[len(ids) - 1 :]
    for token, row in zip(wrote, rows, strict=False):
        assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-3)


@interleaved
async def test_a_hybrid_is_computed_in_chunks(make: Make, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "hybrid", "hybrid")
    loaded = load_checkpoint(folder, spec=catalogue.SAMPLE)
    with closing(make(loaded)) as engine:
        for ids in (PROMPT * 3, PROMPT * 3, PROMPT[:9]):
            assert torch.allclose(await score(engine, ids), plain(loaded, ids), atol=1e-3)
        follow_up = [*PROMPT, *PROMPT, 7]
        assert await answer(engine, follow_up, max_tokens=1) == [int(plain(loaded, follow_up)[-1].argmax())]


@every_engine
async def test_other_requests_continue_with_the_same_answers(make: Make) -> None:
    loaded = tiny_model()
    with closing(make(loaded)) as engine:
        alone = [await answer(engine, prompt, max_tokens=60) for prompt in COMPANY]
        both = [answer(engine, prompt, max_tokens=60) for prompt in COMPANY]
        texts = [PROMPT * 10, PROMPT[::-1] * 10]
        beside, scored = await asyncio.gather(
            asyncio.gather(*both), asyncio.gather(*(score(engine, ids) for ids in texts))
        )
    assert beside == alone
    for got, ids in zip(scored, texts, strict=True):
        assert torch.allclose(got, plain(loaded, ids), atol=1e-3)


@every_engine
async def test_stop_works_between_chunks(make: Make) -> None:
    loaded = tiny_model()
    with closing(make(loaded)) as engine:
        async with aclosing(engine.score(PROMPT * 20, keep)) as items:
            async for item in items:
                assert not isinstance(item, Queued)
                break
        assert await wait_idle(engine) < 1
        assert len(await answer(engine, PROMPT, max_tokens=5)) == 5


@every_engine
async def test_a_failed_measure_ends_only_its_request(make: Make) -> None:
    def fail(position: int, logits: torch.Tensor) -> int:
        raise ZeroDivisionError("secret")

    def refuse(position: int, logits: torch.Tensor) -> int:
        raise InvalidRequestError("not this")

    with closing(make(tiny_model())) as engine:
        beside = asyncio.create_task(answer(engine, COMPANY[0], max_tokens=100))
        await until(engine, running=1)
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            await anext(engine.score(PROMPT, fail))
        with pytest.raises(InvalidRequestError, match="not this"):
            await anext(engine.score(PROMPT, refuse))
        assert len(await beside) == 100
        assert engine.stats().restarts == 0
        assert len(await score(engine, PROMPT)) == len(PROMPT)


@every_engine
async def test_closing_ends_it_with_an_error(make: Make) -> None:
    engine = make(tiny_model())
    tasks = [asyncio.create_task(score(engine, PROMPT * 20)) for _ in range(3)]
    await asyncio.sleep(0.005)
    await asyncio.to_thread(engine.close)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, (EngineClosedError, torch.Tensor)) for result in results), results
    assert any(isinstance(result, EngineClosedError) for result in results)
    with pytest.raises(EngineClosedError):
        await score(engine, PROMPT)


@every_engine
async def test_a_full_queue_refuses(make: Make) -> None:
    with closing(make(tiny_model(), max_waiting=2)) as engine:
        tasks = [asyncio.create_task(score(engine, PROMPT * 20)) for _ in range(20)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(result, EngineBusyError) for result in results)
        assert any(isinstance(result, torch.Tensor) for result in results)


@interleaved
async def test_a_scored_text_is_not_computed_again(make: Make) -> None:
    loaded = tiny_model()
    read: list[int] = []
    loaded.model.get_input_embeddings().register_forward_hook(lambda _, ids, __: read.append(ids[0].numel()))
    with closing(make(loaded)) as engine:
        await score(engine, PROMPT * 3)
        read.clear()
        assert await answer(engine, PROMPT * 3, max_tokens=1) == [int(plain(loaded, PROMPT * 3)[-1].argmax())]
        assert read[0] == 1
        # To score a cached text, all tokens are computed, because caches have no logits.
        read.clear()
        await score(engine, PROMPT * 3)
        assert sum(read) == 3 * len(PROMPT)


# Only the batching engine


async def test_a_sleeping_loop_wakes_for_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SCORE_BYTES", 4 * 64)
    with closing(batching_engine(tiny_model())) as engine:
        await asyncio.sleep(0.3)
        async with asyncio.timeout(25):  # 500 chunks; a sleeping loop checks only ten times per second
            await score(engine, PROMPT * 25)


async def test_a_restarted_loop_continues_with_the_text() -> None:
    loaded = tiny_model()
    with torch.no_grad():
        loaded.model.lm_head.weight[POISON] = 0

    def broken(output: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("broken")

    with closing(batching_engine(loaded)) as engine:
        ids = PROMPT * 20
        with poisoned(loaded, broken):
            items = engine.score(ids, keep)
            first = await anext(items)
            with pytest.raises(EngineError, match="ZeroDivisionError"):
                await answer(engine, [POISON], max_tokens=5)
            rest = [item async for item in items]
        assert engine.stats().restarts == 1
        rows = torch.cat([item[1] for item in [first, *rest] if not isinstance(item, Queued)])
        assert torch.allclose(rows, plain(loaded, ids), atol=1e-3)


async def test_a_failure_of_the_model_ends_only_the_text() -> None:
    loaded = tiny_model()

    def broken(output: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("broken")

    with poisoned(loaded, broken), closing(batching_engine(loaded)) as engine:
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            await score(engine, [*PROMPT, POISON])
        assert engine.stats().restarts == 0
        assert len(await score(engine, PROMPT)) == len(PROMPT)


async def test_eager_attention_is_paged_again_after_each_chunk() -> None:
    loaded = tiny_model()
    loaded.model.set_attn_implementation("eager")
    with closing(batching_engine(loaded)) as engine:
        seen: set[str] = set()

        def look(position: int, logits: torch.Tensor) -> int:
            seen.add(loaded.model.config._attn_implementation)
            return len(logits)

        got = await score(engine, PROMPT * 2)
        assert [item async for item in engine.score(PROMPT, look)]
        assert seen == {"eager"}
        assert loaded.model.config._attn_implementation == "paged|eager"
        assert len(await answer(engine, PROMPT, max_tokens=5)) == 5
    assert torch.allclose(got, plain(loaded, PROMPT * 2), atol=1e-3)


async def test_a_text_that_does_not_fit_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(batching_engine(tiny_model())) as engine:
        token_bytes = 2 * 2 * 2 * 8 * 4
        monkeypatch.setattr(batch_scoring, "free_memory", lambda device: 2 * 100 * token_bytes)
        assert len(await score(engine, PROMPT * 5)) == 100
        with pytest.raises(InvalidRequestError, match=r"140 tokens.*about 107"):
            await score(engine, PROMPT * 7)
        with pytest.raises(ContextOverflowError):
            await score(engine, PROMPT * 40)


@every_engine
async def test_a_text_longer_than_the_context_is_refused(make: Make) -> None:
    with closing(make(tiny_model())) as engine:
        assert len(await score(engine, [1] * 512)) == 512
        with pytest.raises(ContextOverflowError, match="513 tokens.*512"):
            await score(engine, [1] * 513)


async def test_a_model_of_several_processes_is_not_scored() -> None:
    loaded = tiny_model()
    scorer = batch_scoring.BatchScorer(loaded, lambda: None, 4, Group(2, 0, 0))
    assert dict(scorer.unable)["scoring"].startswith("Several processes")
    with pytest.raises(InvalidRequestError, match="Several processes"):
        await anext(scorer.score(PROMPT, keep))


async def test_a_closed_engine_drops_the_model() -> None:
    import gc
    import weakref

    loaded = tiny_model()
    engine: BatchingEngine = batching_engine(loaded)
    await score(engine, PROMPT)
    engine.close()
    gone = weakref.ref(loaded.model)
    del loaded
    gc.collect()
    assert gone() is None


async def test_positions_are_announced_while_another_text_is_computed() -> None:
    with closing(batching_engine(tiny_model())) as engine:

        async def positions() -> list[int]:
            items = [item async for item in engine.score(PROMPT * 10, keep)]
            waits = [item.ahead for item in items if isinstance(item, Queued)]
            assert not any(isinstance(item, Queued) for item in items[len(waits) :])
            return waits

        announced = await asyncio.gather(positions(), positions(), positions())
    assert sorted(itertools.chain(*announced)) == [0, 0, 1]
