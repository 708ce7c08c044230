"""A branch from another token: what was read before is not read again, and its text is that of a fresh prompt."""

from contextlib import closing
from typing import Any

import pytest

from granite_demo.engine.base import Engine
from granite_demo.engine.dynamic import DynamicRunner
from granite_demo.engine.interleaved import InterleavedEngine
from granite_demo.loading import LoadedModel
from granite_demo.sampling_params import SamplingParams
from granite_demo.types import Queued, Token

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
        shown = await answer(engine, prompt, 12)
        place = 5
        other = next(index for index, *_ in shown[place].alternatives if index != shown[place].id)
        branch = [*prompt, *(token.id for token in shown[:place]), other]
        hook = sample.model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            branched = await answer(engine, branch, 8)
        finally:
            hook.remove()
    with closing(InterleavedEngine(DynamicRunner(sample, 0), sample.eos_ids)) as fresh:
        anew = await answer(fresh, branch, 8)
    assert [token.id for token in branched] == [token.id for token in anew]
    assert len(prompt) > 80
    # The token that was chosen instead, and each new one; nothing of what stood before.
    assert read == [1] * len(branched)
