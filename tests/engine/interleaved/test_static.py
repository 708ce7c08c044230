"""The static runner: everything but the recording itself, which needs a GPU (tests/gpu/test_static.py)."""

import asyncio
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from granite_demo.engine.decoder_layers import decoder_layers
from granite_demo.engine.interleaved.engine import InterleavedEngine
from granite_demo.engine.interleaved.static import StaticRunner, StaticSlot
from granite_demo.engine.interleaved.static_cache import rows_layers
from granite_demo.engine.interleaved.static_steps import Sizes
from granite_demo.engine.token_stream import Cancelled
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models import catalogue
from granite_demo.types.load_options import LoadOptions
from tests.engine.running import answer, record, tiny_model
from tests.loaded import load_checkpoint
from tests.tinymodels import write_checkpoint

SIZES = Sizes(shortest=16, padded=(8, 32))
PROMPT = [5 + index * 7 % 50 for index in range(20)]


def runner(loaded: LoadedModel, slots: int = 2, **options: Any) -> StaticRunner:
    made = StaticRunner(loaded, slots, **{"sizes": SIZES, **options})
    made.warm_up()
    return made


def nothing() -> None:
    pass


def write(made: StaticRunner, slot: StaticSlot, prompt: list[int], count: int, chunk: int = 10**6) -> list[int]:
    """Return the next tokens after ``prompt``, greedily."""
    while len(slot.ids) < len(prompt):
        logits = made.forward(slot, prompt[len(slot.ids) :][:chunk], nothing)
    ids = [int(logits.argmax())]
    while len(ids) < count:
        ids.append(int(made.forward(slot, ids[-1:], nothing).argmax()))
    return ids


def generate(loaded: LoadedModel, prompt: list[int], count: int) -> list[int]:
    """Return the answer of transformers."""
    output = loaded.model.generate(
        torch.tensor([prompt]), max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None
    )
    ids: list[int] = output[0, len(prompt) :].tolist()
    return ids


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """Return a function that loads a tiny float32 model of a kind, whose answers do not repeat one token."""
    made: dict[str, LoadedModel] = {}

    def load(kind: str) -> LoadedModel:
        if kind not in made:
            folder: Path = write_checkpoint(tmp_path_factory.mktemp("tiny") / "model", kind)
            options = LoadOptions(device="cpu", dtype="float32", context=256)
            made[kind] = load_checkpoint(folder, options, catalogue.SAMPLE)
        return made[kind]

    return load


WAYS = {
    "view": {"rows": False, "record": None},
    "view, recorded": {"rows": False, "record": record},
    "rows": {"rows": True, "record": None},
    "rows, recorded": {"rows": True, "record": record},
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
recorded_ways = pytest.mark.parametrize("way", [WAYS["view, recorded"], WAYS["rows, recorded"]], ids=("view", "rows"))


@pytest.mark.release
def test_greedy_equals_generate_across_lengths_of_cache(sample: LoadedModel) -> None:
    # With views; the contract tests rows.
    made = runner(replace(sample, context_length=256), 1, record=record, rows=False)
    prompt = sample.tokenizer("The lighthouse keeper lived alone on the island and").input_ids
    ours = write(made, made.open(prompt), prompt, 60)
    made.release()
    assert ours == generate(sample, prompt, 60)
    assert len(prompt) < 16
    assert len(prompt) + len(ours) > 64


@every_way
@pytest.mark.parametrize("kind", ["granite", "granitemoe", "hybrid of attention"])
def test_every_kind_equals_generate(tiny: Callable[[str], LoadedModel], kind: str, way: dict[str, Any]) -> None:
    loaded = tiny(kind)
    made = runner(loaded, **way)
    ours = write(made, made.open(PROMPT), PROMPT, 60)
    made.release()
    assert ours == generate(loaded, PROMPT, 60)
    assert len(set(ours)) > 5


@pytest.mark.parametrize("how", [pytest.param(None, marks=pytest.mark.release), record], ids=("computed", "recorded"))
def test_a_hybrid_equals_generate(tiny: Callable[[str], LoadedModel], how: Any) -> None:
    loaded = tiny("hybrid")
    made = runner(loaded, record=how)
    for prompt in (PROMPT, PROMPT[:1]):  # with one token, a recorded step is the first that writes to the state
        slot = made.open(prompt)
        assert write(made, slot, prompt, 60, chunk=7) == generate(loaded, prompt, 60)
        made.close(slot)
    made.release()


@every_way
def test_a_prompt_in_chunks_equals_one_pass(tiny: Callable[[str], LoadedModel], way: dict[str, Any]) -> None:
    made = runner(tiny("granite"), 1, **way)
    prompt = [PROMPT[index % 20] for index in range(70)]
    answers = []
    for chunk in (70, 33, 9, 1):
        slot = made.open([0])  # rewinds to the start
        answers.append(write(made, slot, prompt, 8, chunk))
        made.close(slot)
    made.release()
    assert answers == [answers[0]] * 4


@every_way
def test_conversations_in_turns_do_not_mix(tiny: Callable[[str], LoadedModel], way: dict[str, Any]) -> None:
    loaded = tiny("granite")
    made = runner(loaded, 3, **way)
    prompts = [PROMPT, PROMPT[5:], PROMPT[::-1]]
    slots = [made.open(prompt) for prompt in prompts]
    answers: list[list[int]] = [[], [], []]
    for turn in range(40):
        for slot, prompt, ids in zip(slots, prompts, answers, strict=True):
            ids.append(int(made.forward(slot, ids[-1:] if turn else prompt, nothing).argmax()))
    made.release()
    assert answers == [generate(loaded, prompt, 40) for prompt in prompts]


@pytest.mark.parametrize("kind", ["granite", "hybrid"])
def test_warming_up_leaves_nothing_to_go_on_from(tiny: Callable[[str], LoadedModel], kind: str) -> None:
    made = runner(tiny(kind), record=record)
    assert made.open([0] * 20).ids == []  # the tokens of the warm-up
    made.release()


@recorded_ways
def test_logits_stay_when_another_conversation_goes_on(tiny: Callable[[str], LoadedModel], way: dict[str, Any]) -> None:
    made = runner(tiny("granite"), **way)
    logits = made.forward(made.open(PROMPT), PROMPT[:1], nothing)
    before = logits.clone()
    made.forward(made.open(PROMPT), PROMPT[1:2], nothing)
    made.release()
    assert torch.equal(logits, before)


@every_way
def test_the_same_prompt_again_reads_one_token(tiny: Callable[[str], LoadedModel], way: dict[str, Any]) -> None:
    made = runner(tiny("granite"), 1, **way)
    slot = made.open(PROMPT)
    first = write(made, slot, PROMPT, 8)
    made.close(slot)
    again = made.open(PROMPT)
    assert again.ids == PROMPT[:-1]
    assert write(made, again, PROMPT, 8) == first
    made.release()


def test_only_a_conversation_of_the_same_salt_goes_on(tiny: Callable[[str], LoadedModel]) -> None:
    made = runner(tiny("granite"), 3)
    slot = made.open(PROMPT, "ann")
    write(made, slot, PROMPT, 8)
    made.close(slot)
    for salt in ("bob", ""):
        other = made.open(PROMPT, salt)
        assert other.ids == []
        made.close(other)
    again = made.open(PROMPT, "ann")
    assert again.ids == PROMPT[:-1]
    made.release()


@every_way
def test_a_conversation_goes_on_from_where_it_differs(tiny: Callable[[str], LoadedModel], way: dict[str, Any]) -> None:
    loaded = tiny("granite")
    made = runner(loaded, **way)
    slot = made.open(PROMPT)
    write(made, slot, PROMPT, 8)
    made.close(slot)
    other = [*PROMPT[:15], 3, 1, 4, 1, 5]
    again = made.open(other)
    assert again is slot
    assert again.ids == PROMPT[:15]
    assert write(made, again, other, 20) == generate(loaded, other, 20)
    made.release()


def test_a_hybrid_goes_on_from_the_end_only(tiny: Callable[[str], LoadedModel]) -> None:
    loaded = tiny("hybrid")
    made = runner(loaded, 1, record=record)
    slot = made.open(PROMPT)
    text = PROMPT + write(made, slot, PROMPT, 8)
    made.close(slot)
    longer = [*text, 9, 8]
    again = made.open(longer)
    assert again.ids == text[:-1]
    assert write(made, again, longer, 20) == generate(loaded, longer, 20)
    made.close(again)
    empty = made.open(PROMPT)
    assert empty.ids == []
    assert write(made, empty, PROMPT, 20) == generate(loaded, PROMPT, 20)
    made.release()


@every_way
def test_what_is_shared_is_copied_from_a_conversation_that_may_go_on(
    tiny: Callable[[str], LoadedModel], way: dict[str, Any]
) -> None:
    loaded = tiny("granite")
    made = runner(loaded, **way)
    long = made.open(PROMPT)
    text = PROMPT + write(made, long, PROMPT, 30)
    made.close(long)
    other = [*PROMPT[:18], 3, 1, 4]
    slot = made.open(other)
    assert slot is not long
    assert slot.ids == PROMPT[:18]
    assert write(made, slot, other, 20) == generate(loaded, other, 20)
    assert made.open([*text, 1]).ids == text[:-1]
    made.release()


@every_way
def test_two_who_ask_the_same_at_once_do_not_share_a_slot(
    tiny: Callable[[str], LoadedModel], way: dict[str, Any]
) -> None:
    loaded = tiny("granite")
    made = runner(loaded, **way)
    slot = made.open(PROMPT)
    made.forward(slot, PROMPT, nothing)
    other = made.open(PROMPT)
    assert other is not slot
    assert other.ids == PROMPT[:-1]
    assert write(made, other, PROMPT, 20) == generate(loaded, PROMPT, 20)
    made.release()


def test_little_is_not_copied_and_the_slot_used_longest_ago_is_taken(tiny: Callable[[str], LoadedModel]) -> None:
    made = runner(tiny("granite"), 3)
    for prompt in ([6, 7, 8, 9], [1, 2, 3, 4, 5], [1, 2, 9, 9, 9, 9]):
        slot = made.open(prompt)
        made.forward(slot, prompt, nothing)
        made.close(slot)
    assert made.open([1, 2, 7]).ids == []
    assert [slot.ids for slot in made._slots] == [[], [1, 2, 3, 4, 5], [1, 2, 9, 9, 9, 9]]
    made.release()


@pytest.mark.parametrize(("kind", "kept"), [("granite", PROMPT[:12]), ("hybrid", [])])
def test_cancelled_in_a_chunk_the_slot_is_as_it_was_or_empty(
    tiny: Callable[[str], LoadedModel], kind: str, kept: list[int]
) -> None:
    loaded = tiny(kind)
    made = runner(loaded, 1)
    slot = made.open(PROMPT)
    made.forward(slot, PROMPT[:12], nothing)
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        made.forward(slot, PROMPT[12:], check)
    assert slot.ids == kept
    assert write(made, slot, PROMPT, 20) == generate(loaded, PROMPT, 20)
    made.release()


def test_cancelled_between_recorded_chunks_the_slot_is_as_it_was(tiny: Callable[[str], LoadedModel]) -> None:
    made = runner(tiny("granite"), 1, rows=True, record=record)
    slot = made.open(PROMPT)
    made.forward(slot, PROMPT[:3], nothing)
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        made.forward(slot, PROMPT * 3, check)
    assert slot.ids == PROMPT[:3]
    made.release()


@recorded_ways
def test_what_a_failed_step_left_does_not_reach_the_next(
    tiny: Callable[[str], LoadedModel], way: dict[str, Any]
) -> None:
    loaded = tiny("granite")
    made = runner(loaded, 1, **way)
    slot = made.open(PROMPT)

    def spoil(module: Any, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (arguments[0] * torch.nan,)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    pair: tuple[Any, Any] = (spoil, fail)
    layers = decoder_layers(loaded.model)[1:]
    hooks = [layer.register_forward_pre_hook(hook) for layer, hook in zip(layers, pair, strict=True)]
    with pytest.raises(ZeroDivisionError):
        made.forward(slot, PROMPT, nothing)
    for hook in hooks:
        hook.remove()
    made.discard(slot)
    short = PROMPT[:3]
    assert write(made, made.open(short), short, 8) == generate(loaded, short, 8)
    made.release()


def test_a_step_that_cannot_be_recorded_is_computed_and_says_why(tiny: Callable[[str], LoadedModel]) -> None:
    count = 0

    def refuse(work: Callable[[], object]) -> Callable[[], None]:
        nonlocal count
        count += 1
        if count == 3:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return record(work)

    loaded = tiny("granite")
    made = runner(loaded, record=refuse)
    name, value, reason = made.facts[1]
    assert (name, value) == ("Decoding", "step by step")
    assert reason == "a step cannot be recorded: operation not permitted when stream is capturing"
    assert write(made, made.open(PROMPT), PROMPT, 8) == generate(loaded, PROMPT, 8)
    made.release()


def test_tokens_stay_recorded_where_chunks_cannot_be(tiny: Callable[[str], LoadedModel]) -> None:
    loaded = tiny("granite")
    count = 0

    def record_few(work: Callable[[], object]) -> Callable[[], None]:
        nonlocal count
        count += 1
        if count == 7:  # after five cache lengths and the larger chunk, this is the smaller chunk
            raise RuntimeError("no room")
        return record(work)

    made = runner(loaded, rows=True, record=record_few)
    assert made.facts[1][1] == "5 CUDA graphs"
    assert made.facts[1][2].endswith("a chunk of a prompt cannot be recorded: no room")
    assert write(made, made.open(PROMPT), PROMPT, 8) == generate(loaded, PROMPT, 8)
    made.release()


def test_the_machine_decides_and_says_why(tiny: Callable[[str], LoadedModel]) -> None:
    made = runner(tiny("granite"))
    assert made.facts[0][:2] == ("KV cache", "2 conversations at a time")
    assert made.facts[1] == ("Decoding", "step by step", "CUDA graphs need a CUDA GPU")
    made.release()


def test_facts_count_what_is_recorded(tiny: Callable[[str], LoadedModel]) -> None:
    # Rows: two padded sizes, and one token at 16, 32, 64, 128 and 256, for all slots; views: 16, 64 and 256 for each.
    for rows, count in ((True, 7), (False, 6)):
        made = runner(tiny("granite"), rows=rows, record=record)
        assert made.facts[1][1] == f"{count} CUDA graphs"
        made.release()


def test_more_than_a_slot_holds_is_refused(tiny: Callable[[str], LoadedModel]) -> None:
    made = runner(tiny("granite"), rows=True)
    slot, other = made.open(PROMPT), made.open(PROMPT)
    made.forward(other, PROMPT, nothing)
    keys = rows_layers(other.place.cache)[0].keys
    assert keys is not None
    before = keys[256:].clone()
    made.forward(slot, [1] * 250, nothing)
    with pytest.raises(ValueError, match="do not fit a slot of 256"):
        made.forward(slot, [1] * 7, nothing)
    assert torch.equal(keys[256:], before)
    made.release()


def test_the_end_of_a_slot_is_not_padded_over(tiny: Callable[[str], LoadedModel]) -> None:
    loaded = tiny("granite")
    made = runner(loaded, rows=True, record=record)
    slot, other = made.open(PROMPT), made.open(PROMPT)
    text = PROMPT + write(made, other, PROMPT, 4)
    full = [PROMPT[index % 20] for index in range(255)]
    made.forward(slot, full[:251], nothing)
    made.forward(slot, full[251:], nothing)  # padded to 8, it would reach into the other slot
    assert write(made, other, [*text, 3], 8) == generate(loaded, [*text, 3], 8)
    made.release()


@pytest.mark.parametrize(
    ("position", "count", "passes"),
    [
        (0, 1, [(1, 1)]),
        (0, 3, [(3, 8)]),
        (0, 16, [(8, 8), (8, 8)]),
        (0, 17, [(17, 32)]),
        (0, 70, [(32, 32), (32, 32), (6, 8)]),
        (240, 15, [(8, 8), (7, 8)]),
        (250, 5, [(5, 0)]),
    ],
)
def test_a_chunk_takes_few_passes_with_little_padding(
    tiny: Callable[[str], LoadedModel], position: int, count: int, passes: list[tuple[int, int]]
) -> None:
    made = runner(tiny("granite"), 1, rows=True, record=record)
    assert list(made._steps.cut(position, count)) == passes
    made.release()


def test_release_lets_go_and_leaves_the_model_as_it_was(tiny: Callable[[str], LoadedModel]) -> None:
    loaded = tiny("granite")
    made = runner(loaded, rows=True, record=record)
    slot = made.open(PROMPT)
    made.forward(slot, PROMPT, nothing)
    tensors = [weakref.ref(layer.keys) for layer in rows_layers(slot.place.cache) if layer.keys is not None]
    assert len(tensors) == 3
    assert loaded.model.config._attn_implementation == "granite_demo_rows"
    made.release()
    assert [tensor() for tensor in tensors] == [None] * 3
    assert loaded.model.config._attn_implementation == "sdpa"
    assert not any(layer._forward_pre_hooks for layer in decoder_layers(loaded.model))
    assert loaded.model not in vars(made).values()


def test_layers_of_an_unknown_kind_are_refused() -> None:
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        sliding_window=8,
    )
    loaded = replace(tiny_model(), model=MistralForCausalLM(config))
    with pytest.raises(ValueError, match="StaticSlidingWindowLayer"):
        StaticRunner(loaded, 1)


@pytest.mark.parametrize(("asked", "used"), [("flex_attention", "sdpa"), ("eager", "eager"), ("sdpa", "sdpa")])
def test_a_view_needs_an_attention_that_takes_a_mask(asked: str, used: str) -> None:
    loaded = tiny_model()
    expected = generate(loaded, PROMPT, 20)
    loaded.model.set_attn_implementation(asked)
    made = runner(loaded, rows=False)
    assert loaded.model.config._attn_implementation == used
    assert write(made, made.open(PROMPT), PROMPT, 20) == expected
    made.release()
    assert loaded.model.config._attn_implementation == asked


@recorded_ways
async def test_the_interleaved_engine_serves_more_requests_than_slots(
    tiny: Callable[[str], LoadedModel], way: dict[str, Any]
) -> None:
    loaded = tiny("granite")
    engine = InterleavedEngine(StaticRunner(loaded, 2, sizes=SIZES, **way), frozenset())
    engine.warm_up()
    prompts = [PROMPT, PROMPT[3:], PROMPT[::-1], PROMPT[9:]]
    answers = await asyncio.gather(*(answer(engine, prompt, max_tokens=20) for prompt in prompts))
    assert answers == [generate(loaded, prompt, 20) for prompt in prompts]
    engine.close()
