"""A branch from another token: what was read before is not read again, and its text is that of a fresh prompt."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest

from granite_demo.engine.batching.loop import PAGE
from granite_demo.engine.interleaved.dynamic import DynamicRunner
from granite_demo.engine.interleaved.engine import InterleavedEngine
from granite_demo.engine.interleaved.static import StaticRunner
from granite_demo.engine.interleaved.static_steps import Sizes
from granite_demo.engine.protocol import Engine
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.types.events import Queued
from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import SamplingParams
from tests.engine.llama_engines import MISSING, gguf_engine
from tests.engine.running import batching_engine, one_thread, record, tiny_model

PROMPT = "Once upon a time, on a small island in the north, there lived an old fisherman who had three daughters. "


async def answer(engine: Engine, ids: list[int], count: int) -> list[Token]:
    sampling = SamplingParams(max_tokens=count, logprobs=5)
    return [item async for item in engine.generate(ids, sampling) if not isinstance(item, Queued)]


@pytest.mark.slow
async def test_a_branch_reads_only_its_new_token(sample: LoadedModel) -> None:
    prompt: list[int] = sample.tokenizer(PROMPT * 4).input_ids
    read: list[int] = []

    def count(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        read.append(named["input_ids"].shape[1])

    with closing(InterleavedEngine(DynamicRunner(sample, 2**30), sample.eos_ids)) as engine:
        shown = await answer(engine, prompt, 8)
        place = 5
        other = next(index for index, *_ in shown[place].alternatives if index != shown[place].id)
        branch = [*prompt, *(token.id for token in shown[:place]), other]
        hook = sample.model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            branched = await answer(engine, branch, 4)
        finally:
            hook.remove()
    with closing(InterleavedEngine(DynamicRunner(sample, 0), sample.eos_ids)) as fresh:
        expected = await answer(fresh, branch, 4)
    assert [token.id for token in branched] == [token.id for token in expected]
    assert len(prompt) > 80
    # The token that was chosen instead, and each new one; nothing of what stood before.
    assert read == [1] * len(branched)


def counted(runner: Any, loaded: LoadedModel) -> tuple[Engine, list[int]]:
    """An engine over ``runner``, warm, and how many tokens it is given to read each time."""
    engine = InterleavedEngine(runner, loaded.eos_ids)
    engine.warm_up()
    read: list[int] = []
    forward = runner.forward

    def counting(slot: Any, ids: list[int], check: Any) -> Any:
        read.append(len(ids))
        return forward(slot, ids, check)

    runner.forward = counting
    return engine, read


def on_growing_caches(loaded: LoadedModel, folder: Path) -> tuple[Engine, list[int]]:
    return counted(DynamicRunner(loaded, 10**9), loaded)


def on_static_caches(loaded: LoadedModel, folder: Path) -> tuple[Engine, list[int]]:
    sizes = Sizes(shortest=16, padded=(8, 32))
    return counted(StaticRunner(loaded, 4, rows=True, record=record, sizes=sizes), loaded)


def on_llama(loaded: LoadedModel, folder: Path) -> tuple[Engine, list[int]]:
    engine, read = gguf_engine(loaded, folder / "tiny.gguf"), list[int]()
    pieces = engine._pieces

    async def counting(body: Any) -> AsyncGenerator[dict[str, Any]]:
        async with aclosing(pieces(body)) as counted:
            async for piece in counted:
                if piece["stop"]:
                    read.append(piece["timings"]["prompt_n"] + piece["timings"]["predicted_n"] - 1)
                yield piece

    engine._pieces = counting  # type: ignore[method-assign]
    return engine, read


def batching(loaded: LoadedModel, folder: Path) -> tuple[Engine, list[int]]:
    engine = batching_engine(loaded)
    read: list[int] = []

    def count(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        read.append(named["input_ids"].numel())

    loaded.model.register_forward_pre_hook(count, with_kwargs=True)
    return engine, read


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (on_growing_caches, 305),
        (on_static_caches, 305),
        pytest.param(on_llama, 305, marks=pytest.mark.skipif(bool(MISSING), reason=MISSING)),
        (batching, PAGE),  # whole blocks of the cache are shared
    ],
)
async def test_a_branch_is_read_from_where_it_parts_in_every_engine(
    make: Callable[[LoadedModel, Path], tuple[Engine, list[int]]], kept: int, tmp_path: Path
) -> None:
    prompt = [1 + index * 7 % 60 for index in range(300)]
    with one_thread():
        engine, read = make(tiny_model(), tmp_path)
        with closing(engine):
            shown = await answer(engine, prompt, 12)
            other = next(index for index, *_ in shown[5].alternatives if index != shown[5].id)
            branch = [*prompt, *(token.id for token in shown[:5]), other]
            del read[:]
            branched = await answer(engine, branch, 8)
        assert sum(read) == len(branch) - kept + len(branched) - 1  # the last token is not read
        with closing(make(tiny_model(), tmp_path)[0]) as fresh:
            expected = await answer(fresh, branch, 8)
    assert [token.id for token in branched] == [token.id for token in expected]
