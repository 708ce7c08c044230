"""Growing caches: which prefixes a new prompt finds, and the caches after Stop and failures."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from granite_demo.engine.decoder_layers import decoder_layers
from granite_demo.engine.interleaved.dynamic import SLOTS, DynamicRunner, DynamicSlot
from granite_demo.engine.interleaved.engine import InterleavedEngine
from granite_demo.engine.token_stream import Cancelled
from granite_demo.loading.float32_prefill import ATTENTION
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models import catalogue
from tests.engine.running import answer, one_thread, reference, tiny_model
from tests.loaded import load_checkpoint
from tests.loading.test_float32_prefill import Products
from tests.tinymodels import write_checkpoint

PROMPT = [5 + index * 7 % 50 for index in range(30)]
OTHER = [60, 61, 62]
TOKEN_BYTES = 2 * 2 * 2 * 8 * 4
"""Key and value, layers, heads, their size, float32."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread(), torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Return a tiny model with an attention layer between two Mamba layers."""
    folder: Path = write_checkpoint(tmp_path_factory.mktemp("hybrid") / "model", "hybrid")
    return load_checkpoint(folder, spec=catalogue.SAMPLE)


def nothing() -> None:
    pass


def read(runner: DynamicRunner, prompt: list[int], slot: DynamicSlot | None = None) -> tuple[DynamicSlot, torch.Tensor]:
    """Return a slot with ``prompt``, and the logits after it."""
    slot = slot or runner.open(prompt)
    return slot, runner.forward(slot, prompt[len(slot.ids) :], nothing)


def cold(loaded: LoadedModel, prompt: list[int]) -> torch.Tensor:
    logits: torch.Tensor = loaded.model(torch.tensor([prompt])).logits[:, -1]
    return logits


def lengths(slot: DynamicSlot) -> set[int]:
    """Return the numbers of tokens in the layers."""
    return {layer.get_seq_length() for layer in slot.cache.layers}  # type: ignore[union-attr]


def kept_by(loaded: LoadedModel, *prompts: list[int], budget: int = 10**9) -> DynamicRunner:
    """Return a runner that has computed these prompts."""
    runner = DynamicRunner(loaded, budget)
    for prompt in prompts:
        runner.close(read(runner, prompt)[0])
    return runner


@contextmanager
def failing_at(loaded: LoadedModel, layer: int, error: BaseException) -> Iterator[None]:
    def fail(*_: Any) -> None:
        raise error

    hook = decoder_layers(loaded.model)[layer].register_forward_pre_hook(fail)
    yield
    hook.remove()


# Which prefix a prompt finds


def test_a_prompt_finds_nothing_at_first() -> None:
    slot = DynamicRunner(tiny_model(), 10**9).open(PROMPT)
    assert slot.ids == []
    assert lengths(slot) == {0}


@pytest.mark.parametrize("shared", [1, 15])
def test_a_small_shared_part_is_copied(shared: int) -> None:
    loaded = tiny_model()
    runner = kept_by(loaded, PROMPT)
    slot, logits = read(runner, PROMPT[:shared] + OTHER)
    assert torch.allclose(logits, cold(loaded, PROMPT[:shared] + OTHER), atol=1e-5)
    assert len(slot.ids) == shared + 3
    # The other conversation continues without a change.
    again = runner.open(PROMPT + OTHER)
    assert again.ids == PROMPT
    assert torch.allclose(read(runner, PROMPT + OTHER, again)[1], cold(loaded, PROMPT + OTHER), atol=1e-5)


@pytest.mark.parametrize("shared", [16, 29, 30])
def test_a_cache_with_a_large_shared_part_is_reused(shared: int) -> None:
    loaded = tiny_model()
    runner = kept_by(loaded, PROMPT)
    slot = runner.open(PROMPT[:shared] + OTHER)
    assert slot.ids == PROMPT[:shared]
    assert lengths(slot) == {shared}
    assert runner.open(PROMPT + OTHER).ids == [], "it is not kept twice"
    assert torch.allclose(
        read(runner, PROMPT[:shared] + OTHER, slot)[1], cold(loaded, PROMPT[:shared] + OTHER), atol=1e-5
    )


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    loaded = tiny_model()
    slot = kept_by(loaded, PROMPT).open(PROMPT)
    assert slot.ids == PROMPT[:-1]
    slot = kept_by(loaded, PROMPT).open(PROMPT[:20])
    assert slot.ids == PROMPT[:19]


def test_an_open_slot_is_not_shared() -> None:
    runner = DynamicRunner(tiny_model(), 10**9)
    read(runner, PROMPT)
    assert runner.open(PROMPT + OTHER).ids == []


def test_a_hybrid_continues_only_from_the_end(hybrid: LoadedModel) -> None:
    runner = kept_by(hybrid, PROMPT)
    assert runner.open(PROMPT).ids == []
    assert runner.open(PROMPT[:29] + OTHER).ids == []
    slot = runner.open(PROMPT + OTHER)
    assert slot.ids == PROMPT
    assert torch.allclose(read(runner, PROMPT + OTHER, slot)[1], cold(hybrid, PROMPT + OTHER), atol=1e-4)
    assert runner.open(PROMPT + OTHER).ids == [], "it was taken over"


async def test_a_later_turn_of_a_hybrid_equals_generate_and_reuses_its_cache(hybrid: LoadedModel) -> None:
    count = tokens_read(hybrid)
    runner = DynamicRunner(hybrid, 10**9)
    engine = InterleavedEngine(runner, hybrid.eos_ids)
    said = await answer(engine, PROMPT, max_tokens=10)
    count()
    follow_up = [*PROMPT, *said, *OTHER]
    ours = await answer(engine, follow_up, max_tokens=10)
    # The last token of the answer is not in the cache.
    assert count() == 1 + len(OTHER) + 9
    assert ours == reference(hybrid, follow_up, 10)
    assert await answer(engine, PROMPT, max_tokens=10) == said
    engine.close()


def tokens_read(loaded: LoadedModel) -> Callable[[], int]:
    """Counts the input tokens of the model since the last call."""
    total = 0

    def add(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        nonlocal total
        total += arguments[0].numel()

    def count() -> int:
        nonlocal total
        result, total = total, 0
        return result

    loaded.model.get_input_embeddings().register_forward_pre_hook(add)
    return count


async def test_a_later_turn_computes_only_new_tokens() -> None:
    loaded = tiny_model()
    count = tokens_read(loaded)
    engine = InterleavedEngine(DynamicRunner(loaded, 10**9), frozenset())
    said = await answer(engine, PROMPT, max_tokens=10)
    assert count() == 30 + 9
    await answer(engine, [*PROMPT, *said, *OTHER], max_tokens=10)
    assert count() == 1 + len(OTHER) + 9
    await answer(engine, [*PROMPT, *said, *OTHER], max_tokens=1)
    assert count() == 1, "a retry reads the last token again"
    engine.close()


# Which caches are kept


def test_the_size_of_a_slot_is_that_of_its_tokens(hybrid: LoadedModel) -> None:
    slot, _ = read(DynamicRunner(tiny_model(), 0), PROMPT)
    assert slot.nbytes == 30 * TOKEN_BYTES
    small, large = (read(DynamicRunner(hybrid, 0), PROMPT[:length])[0].nbytes for length in (10, 20))
    attention = 2 * 2 * 16 * 4
    assert large - small == 10 * attention
    assert small > 10 * attention, "the states count"


def test_no_more_is_kept_than_the_budget() -> None:
    loaded = tiny_model()
    one, two = [1, *PROMPT], [2, *PROMPT]
    runner = kept_by(loaded, one, two, budget=60 * TOKEN_BYTES)
    assert runner.open(one).ids == []
    assert runner.open(two).ids == two[:-1]
    assert kept_by(loaded, one, two, budget=62 * TOKEN_BYTES).open(one).ids == one[:-1]
    assert kept_by(loaded, one, budget=0).open(one).ids == []


def test_a_slot_without_tokens_is_not_kept() -> None:
    runner = DynamicRunner(tiny_model(), 0)
    slot = runner.open(PROMPT)
    runner.close(slot)
    assert runner.open(PROMPT) is not slot


def test_a_discarded_slot_is_not_found() -> None:
    runner = DynamicRunner(tiny_model(), 10**9)
    runner.discard(read(runner, PROMPT)[0])
    assert runner.open(PROMPT).ids == []


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (torch.OutOfMemoryError(), 0),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 0),
        (RuntimeError("shapes"), len(PROMPT) - 1),
    ],
)
def test_out_of_memory_drops_the_kept_caches(error: RuntimeError, left: int) -> None:
    loaded = tiny_model()
    runner = kept_by(loaded, PROMPT)
    with failing_at(loaded, 0, error), pytest.raises(type(error)):
        read(runner, OTHER)
    assert len(runner.open(PROMPT).ids) == left


def test_warm_up_leaves_no_caches() -> None:
    runner = DynamicRunner(tiny_model(), 10**9)
    runner.warm_up()
    assert runner.open([0] * 20).ids == []


# Stop


class Stop:
    """Cancels in the given call."""

    def __init__(self, at: int) -> None:
        self.calls = 0
        self.at = at

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise Cancelled


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("before", [0, 12])
def test_a_cancelled_chunk_does_not_change_the_slot(at: int, before: int) -> None:
    loaded = tiny_model()
    runner = DynamicRunner(loaded, 10**9)
    slot = runner.open(PROMPT)
    if before:
        runner.forward(slot, PROMPT[:before], nothing)
    with pytest.raises(Cancelled):
        runner.forward(slot, PROMPT[before:], Stop(at))
    assert slot.ids == PROMPT[:before]
    assert lengths(slot) == {before}
    assert torch.allclose(read(runner, PROMPT, slot)[1], cold(loaded, PROMPT), atol=1e-5)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_cancelled_chunk_empties_the_slot_of_a_hybrid(hybrid: LoadedModel, at: int) -> None:
    runner = DynamicRunner(hybrid, 10**9)
    slot, _ = read(runner, PROMPT[:12])
    with pytest.raises(Cancelled):
        runner.forward(slot, PROMPT[12:], Stop(at))
    assert slot.ids == []
    assert torch.allclose(read(runner, PROMPT, slot)[1], cold(hybrid, PROMPT), atol=1e-4)


def test_a_chunk_checks_for_stop_before_each_layer_and_a_single_token_does_not() -> None:
    runner = DynamicRunner(tiny_model(), 10**9)
    slot, never = runner.open(PROMPT), Stop(0)
    runner.forward(slot, PROMPT, never)
    assert never.calls == 2
    runner.forward(slot, [1], never)
    runner.warm_up()
    assert never.calls == 2


# 16-bit weights on a CPU without 16-bit products


@pytest.fixture
def narrow() -> LoadedModel:
    """Return a tiny model in bfloat16 whose prompts are computed in float32."""
    loaded = tiny_model()
    placement = replace(loaded.placement, dtype=torch.bfloat16, float32_prefill=True)
    return replace(loaded, model=loaded.model.to(torch.bfloat16), placement=placement)


def test_prompts_are_computed_in_float32_and_tokens_are_not(narrow: LoadedModel) -> None:
    runner = DynamicRunner(narrow, 10**9)
    with Products() as products:
        slot, _ = read(runner, PROMPT)
        runner.forward(slot, [1], nothing)
    assert products.seen.count((30, torch.float32)) == 2 * 7
    assert products.seen[2 * 7 :] == [(1, torch.bfloat16)] * (1 + 2 * 7 + 1)


async def test_answers_with_float32_prompts_are_those_of_generate(narrow: LoadedModel) -> None:
    expected = reference(narrow, PROMPT, 10)
    engine = InterleavedEngine(DynamicRunner(narrow, 10**9), frozenset())
    assert await answer(engine, PROMPT, max_tokens=10) == expected
    engine.close()


@pytest.mark.parametrize("own", ["sdpa", "eager"])
def test_sdpa_attention_is_replaced_and_restored(narrow: LoadedModel, own: str) -> None:
    narrow.model.set_attn_implementation(own)
    runner = DynamicRunner(narrow, 0)
    assert narrow.model.config._attn_implementation == (ATTENTION if own == "sdpa" else "eager")
    runner.release()
    assert narrow.model.config._attn_implementation == own
    plain = replace(narrow, placement=replace(narrow.placement, float32_prefill=False))
    DynamicRunner(plain, 0)
    assert narrow.model.config._attn_implementation == own


# The model


def test_release_drops_the_model_and_its_layers() -> None:
    loaded = tiny_model()
    runner = kept_by(loaded, PROMPT)
    model = weakref.ref(loaded.model)
    layer = decoder_layers(loaded.model)[0]
    runner.release()
    assert not layer._forward_pre_hooks
    del loaded, layer
    gc.collect()
    assert model() is None
    assert runner.facts


def test_the_facts_have_the_number_of_slots_and_the_budget() -> None:
    facts = DynamicRunner(tiny_model(), 3 * 10**9).facts
    assert [(name, value) for name, value, _ in facts] == [
        ("KV cache", f"{SLOTS} conversations at a time"),
        ("Kept", "up to 3.0 GB"),
    ]
    assert all(reason for _, _, reason in facts)
