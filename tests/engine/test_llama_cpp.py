"""The engine over llama.cpp's server; what it shares with the other engines is in ``contract``."""

import asyncio
import json
import re
import tempfile
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch

from granite_demo.engine import llama_cpp
from granite_demo.engine.llama_cpp import LlamaEngine, TokenPieces, completion_body, folded_seed
from granite_demo.engine.protocol import TokenScorer
from granite_demo.errors import ContextOverflowError, EngineError, InvalidRequestError
from granite_demo.hub.sample import ensure_gguf
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models.gguf_header import read_header
from granite_demo.outputs.structured_output import Begun, Matcher, compile_constraint
from granite_demo.prompts.gguf_tokenizer import make_tokenizer
from granite_demo.settings import Settings
from granite_demo.types.constraints import Constraint
from granite_demo.types.events import Queued
from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import SamplingParams
from tests.engine.contract import PROMPT, assert_greedy, logits_of
from tests.engine.llama_engines import MISSING, file_engine, gguf_engine, letters, write_gguf
from tests.engine.running import answer, tiny_model, tokens, until, wait_idle

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


# What llama.cpp does not report


PIECES = [b"a", b"\xf0\x9f", b"\x99\x82", b"\xf0", b"\x9f", b"\x99", b"\x82", b" \xf0\x9f\x99", b"\xc3\xa9", b"!"]


@pytest.mark.parametrize(
    ("last", "text", "count", "expected"),
    [
        (2, "🙂", 1, [1]),
        (6, "🙂", 2, [1, 5]),
        (6, "🙂", 3, [3, 4, 5]),
        (6, " 🙂", 1, [7]),
        (2, "🙂", 3, []),  # none fit
        (9, "🙂", 1, []),
        (6, "\ufffd", 1, []),  # not a character: its bytes are lost
    ],
)
def test_tokens_of_a_character_are_found_by_its_bytes(last: int, text: str, count: int, expected: list[int]) -> None:
    assert TokenPieces(PIECES).before(last, text.encode(), count) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1])
def test_a_seed_has_32_bits_and_is_never_the_one_that_means_any(seed: int) -> None:
    assert 0 <= folded_seed(seed) < 2**32 - 1
    assert folded_seed(seed) != folded_seed(seed + 2**40)


def test_the_prompt_costs_no_penalty() -> None:
    sampling = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25, logit_bias=((7, 1.0),))
    given_back = {7: 1.0 + 2 * 0.5 + 0.25, 9: 0.5 + 0.25}
    assert dict(completion_body([7, 7, 9], sampling, 5)["logit_bias"]) == given_back
    assert dict(completion_body([7, 7, 9], sampling, 5, said=[7, 8])["logit_bias"]) == given_back, "the answer does"
    assert completion_body([7, 7, 9], SamplingParams(), 5)["logit_bias"] == []


# A tiny model


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    """A random Granite, no token of which ends an answer."""
    return tiny_model()


@pytest.fixture
def file(tiny: LoadedModel, tmp_path: Path) -> Path:
    """The same in a file."""
    return write_gguf(tiny.model, tmp_path / "tiny.gguf", letters(64, None))


@pytest.fixture
def engine(file: Path) -> Iterator[LlamaEngine]:
    """The engine over it, with a cache of 640 tokens."""
    engine = file_engine(file, ignore_ends=True, context=640)
    yield engine
    engine.close()


@pytest.mark.parametrize("index", [-1, 65, 2**31, 2**40])
async def test_an_id_beyond_the_vocabulary_is_refused(engine: LlamaEngine, index: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"{index} is not a token id. This model has the ids 0 to 64"):
        await answer(engine, [1, index], max_tokens=2)
    with pytest.raises(InvalidRequestError, match="is not a token id"):
        [item async for item in engine.score_tokens([1, index], 1)]
    assert len(await answer(engine, PROMPT, max_tokens=2)) == 2


async def test_seeds_differ_in_their_high_bits(engine: LlamaEngine) -> None:
    first, second = [await answer(engine, PROMPT, max_tokens=40, temperature=1.0, seed=seed) for seed in (5, 5 + 2**40)]
    assert first != second


async def test_a_request_waits_until_its_prompt_and_answer_fit(engine: LlamaEngine) -> None:
    long = asyncio.create_task(answer(engine, PROMPT, max_tokens=400))
    await until(engine, running=1)
    items = [item async for item in engine.generate(PROMPT, SamplingParams(max_tokens=300))]
    assert [item.ahead for item in items if isinstance(item, Queued)] == [0], "there are slots, but no room"
    assert long.done()
    assert sum(isinstance(item, Token) for item in items) == 300
    assert len(await long) == 400


async def test_who_waits_for_room_is_not_overtaken(engine: LlamaEngine) -> None:
    tasks = [asyncio.create_task(answer(engine, PROMPT, max_tokens=count)) for count in (400, 300, 1)]
    await asyncio.sleep(0)  # each of them has joined the line
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (1, 2)
    assert [len(ids) for ids in await asyncio.gather(*tasks)] == [400, 300, 1]


async def test_a_full_cache_cuts_a_long_answer_and_harms_no_other(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "RESERVE", 50)
    prompts = [PROMPT, [3, *PROMPT], [4, *PROMPT]]
    lengths = [len(ids) for ids in await asyncio.gather(*(answer(engine, ids, max_tokens=400) for ids in prompts))]
    assert min(lengths) >= 50
    assert min(lengths) < 400, "three of them do not fit"
    assert sum(lengths) > 500, "the room is used"
    assert len(await answer(engine, PROMPT, max_tokens=400)) == 400


async def test_an_answer_in_parts_is_the_same(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = await tokens(engine, PROMPT, max_tokens=40, logprobs=2)
    monkeypatch.setattr(llama_cpp, "RESERVE", 7)
    parts = await tokens(engine, PROMPT, max_tokens=40, logprobs=2)
    assert [token.id for token in parts] == [token.id for token in whole]
    assert [token.logprob for token in parts] == pytest.approx([token.logprob for token in whole], abs=0.02)
    sampling: dict[str, Any] = {"max_tokens": 40, "temperature": 1.0, "seed": 3}
    assert await answer(engine, PROMPT, **sampling) == await answer(engine, PROMPT, **sampling)


async def test_ended_conversations_give_way(engine: LlamaEngine) -> None:
    prompts = [[at, *(index % 50 for index in range(200))] for at in range(6)]
    for prompt in prompts:
        assert len(await answer(engine, prompt, max_tokens=5)) == 5
    together = await asyncio.gather(*(answer(engine, prompt, max_tokens=100) for prompt in prompts[:2]))
    assert [len(ids) for ids in together] == [100, 100]


async def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(engine: LlamaEngine) -> None:
    with pytest.raises(ContextOverflowError, match="600.*512"):
        await answer(engine, [1] * 600, max_tokens=5)
    with pytest.raises(ContextOverflowError, match="600.*512"):
        [item async for item in engine.score_tokens([1] * 600, 1)]


async def test_a_killed_child_ends_its_answers_and_is_started_again(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "RESTARTS", 1)
    expected = await answer(engine, PROMPT, max_tokens=10)

    async def kill() -> list[BaseException | list[int]]:
        running = [asyncio.create_task(answer(engine, [at, *PROMPT], max_tokens=200)) for at in range(2)]
        waiting = asyncio.create_task(answer(engine, PROMPT, max_tokens=400))
        await until(engine, running=2, waiting=1)
        engine._process._child.kill()
        return await asyncio.gather(*running, waiting, return_exceptions=True)

    *ended, waited = await kill()
    assert [type(error) for error in ended] == [EngineError] * 2
    assert "The text so far is kept. Send the request again." in str(ended[0])
    assert isinstance(waited, list)
    assert len(waited) == 400
    assert (engine.stats().restarts, engine.stats().failure) == (1, "")
    assert await answer(engine, PROMPT, max_tokens=10) == expected
    *ended, waited = await kill()
    assert [type(error) for error in ended] == [EngineError] * 2
    assert "stopped too often" in str(waited)
    with pytest.raises(EngineError, match="stopped too often"):
        await answer(engine, PROMPT, max_tokens=10)
    assert "stopped too often" in engine.stats().failure


async def test_an_idle_child_that_is_killed_is_not_noticed(engine: LlamaEngine) -> None:
    expected = await answer(engine, PROMPT, max_tokens=10)
    engine._process._child.kill()
    engine._process._child.wait()
    assert await answer(engine, PROMPT, max_tokens=10) == expected


async def test_a_text_is_scored_alike_after_a_kill_or_fails(engine: LlamaEngine) -> None:
    async with aclosing(engine.score_tokens(PROMPT, 2)) as items:
        await anext(items)
        engine._process._child.kill()
        with pytest.raises(EngineError):
            [item async for item in items]
    assert len([item async for item in engine.score_tokens(PROMPT, 2)]) == len(PROMPT) - 1


async def test_it_compares_no_precisions_and_says_why(engine: LlamaEngine) -> None:
    assert dict(engine.unable)["comparing precisions"]
    with pytest.raises(InvalidRequestError, match="no logits"):
        [item async for item in engine.score(PROMPT, lambda position, logits: None)]


async def test_closed_twice_it_stays_closed(engine: LlamaEngine) -> None:
    engine.close()
    engine.close()
    assert not Path(engine._process.options.socket).parent.exists()


# A tiny model in float32, equal to torch


@pytest.fixture(scope="module")
def exact(tiny: LoadedModel) -> Iterator[LlamaEngine]:
    """Computes as torch does."""
    with tempfile.TemporaryDirectory() as folder:
        engine = gguf_engine(tiny, Path(folder, "tiny.gguf"))
    yield engine
    engine.close()


async def test_a_text_is_scored_as_by_a_forward_pass(exact: LlamaEngine, tiny: LoadedModel) -> None:
    assert isinstance(exact, TokenScorer)
    scored = [item async for item in exact.score_tokens(PROMPT, 3) if not isinstance(item, Queued)]
    rows = torch.nn.functional.pad(logits_of(tiny, PROMPT[:1], PROMPT[1:]), (0, 1)).log_softmax(dim=-1)
    assert [token.id for [token] in scored] == PROMPT[1:]
    for [token], row in zip(scored, rows, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-3)
        assert [value for _, value, _ in token.alternatives] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
    await wait_idle(exact)


async def test_the_penalty_for_frequency_is_that_of_plain_arithmetic(exact: LlamaEngine, tiny: LoadedModel) -> None:
    bias = ((5, 2.0), (40, -100.0))

    def adjust(row: torch.Tensor, said: list[int]) -> torch.Tensor:
        for index, value in bias:
            row[index] += value
        for index in set(said):
            row[index] -= 0.8 * said.count(index)
        return row

    ours = await answer(exact, PROMPT, max_tokens=60, frequency_penalty=0.8, logit_bias=bias)
    assert ours != await answer(exact, PROMPT, max_tokens=60)
    assert set(ours) & set(PROMPT), "otherwise the prompt could count"
    assert_greedy(tiny, PROMPT, ours, 1e-3, adjust)


# The sample


@pytest.fixture(scope="module")
def path() -> Path:
    """The sample's GGUF file."""
    return ensure_gguf(Settings.resolve({}, {}).cache_dir, lambda *_: None, threading.Event())


@pytest.fixture(scope="module")
def words(path: Path) -> Any:
    """Its tokenizer."""
    return make_tokenizer(read_header(path))


@pytest.fixture(scope="module")
def sampled(path: Path) -> Iterator[LlamaEngine]:
    """The engine over it, as it is by default."""
    engine = file_engine(path)
    yield engine
    engine.close()


def matcher_of(words: Any, path: Path, constraint: Constraint, begun: Begun = ("", ())) -> Matcher:
    header = read_header(path).vocabulary
    return compile_constraint(words, constraint, len(header.tokens), header.end_ids, begun)


async def constrained(engine: LlamaEngine, words: Any, prompt: str, matcher: Matcher, **sampling: Any) -> list[Token]:
    ids = words(prompt).input_ids
    items = engine.generate(ids, SamplingParams(**{"max_tokens": 60, **sampling}), matcher)
    return [item async for item in items if isinstance(item, Token)]


def text_of(words: Any, answered: list[Token]) -> str:
    text: str = words.backend_tokenizer.decode([token.id for token in answered])
    return text


@pytest.mark.parametrize("text", ["🙂👩\u200d👧!", "naïve 你好", "a\u2028b\u2029c\x85d"])
@pytest.mark.parametrize("reserve", [1024, 3])
async def test_no_token_of_an_answer_is_lost(
    sampled: LlamaEngine, words: Any, path: Path, text: str, reserve: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "RESERVE", reserve)
    matcher = matcher_of(words, path, Constraint("choice", choices=(text,)))
    answered = await constrained(sampled, words, "Write: ", matcher, logprobs=1)
    assert answered[-1].id in read_header(path).vocabulary.end_ids
    assert text_of(words, answered[:-1]) == text
    assert answered[-1].logprob is not None


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_an_answer_keeps_to_its_constraint(
    sampled: LlamaEngine, words: Any, path: Path, temperature: float
) -> None:
    sampling: dict[str, Any] = {"temperature": temperature, "seed": 3}
    matcher = matcher_of(words, path, Constraint("json_schema", schema=json.dumps(SCHEMA)))
    person = json.loads(text_of(words, (await constrained(sampled, words, "A person:", matcher, **sampling))[:-1]))
    assert set(person) == {"name", "age"}
    matcher = matcher_of(words, path, Constraint("regex", pattern=r"[a-z]{3}/[0-9]{2}"))
    date = text_of(words, (await constrained(sampled, words, "The date:", matcher, **sampling))[:-1])
    assert re.fullmatch("[a-z]{3}/[0-9]{2}", date)
    matcher = matcher_of(words, path, Constraint("choice", choices=("yes", "no")))
    assert text_of(words, (await constrained(sampled, words, "Is it?", matcher, **sampling))[:-1]) in ("yes", "no")


async def test_a_constraint_goes_on_from_what_is_written(sampled: LlamaEngine, words: Any, path: Path) -> None:
    begun = '{"name": "Bo'
    matcher = matcher_of(words, path, Constraint("json_schema", schema=json.dumps(SCHEMA)), (begun, ()))
    answered = await constrained(sampled, words, f"A person: {begun}", matcher, logprobs=2)
    assert answered[-1].id in read_header(path).vocabulary.end_ids
    assert all(token.logprob is not None and len(token.alternatives) == 2 for token in answered)
    person = json.loads(begun + text_of(words, answered[:-1]))
    assert person["name"].startswith("Bo")
    matcher = matcher_of(words, path, Constraint("json_schema", schema=json.dumps(SCHEMA)), (begun, ()))
    assert len(await constrained(sampled, words, f"A person: {begun}", matcher, max_tokens=3)) == 3


async def test_a_constraint_holds_over_parts(
    sampled: LlamaEngine, words: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "RESERVE", 5)
    matcher = matcher_of(words, path, Constraint("regex", pattern="[a-z]{3}(/[0-9]{2}){4}"))
    answered = await constrained(sampled, words, "The dates:", matcher)
    assert answered[-1].id in read_header(path).vocabulary.end_ids
    assert re.fullmatch("[a-z]{3}(/[0-9]{2}){4}", text_of(words, answered[:-1]))


@pytest.mark.parametrize("lark", ["", "start: nothing_that_is_there"])
async def test_a_grammar_that_llama_cpp_does_not_follow_is_noticed(
    sampled: LlamaEngine, words: Any, path: Path, lark: str
) -> None:
    matcher = matcher_of(words, path, Constraint("regex", pattern="[0-9]{5}"))
    matcher.lark = lark
    with pytest.raises((EngineError, InvalidRequestError), match="is not allowed by the regex"):
        await constrained(sampled, words, "Once upon a", matcher)
    assert len(await answer(sampled, words("Once upon a").input_ids, max_tokens=3)) == 3


async def test_a_score_is_the_log_probability_of_the_same_answer(sampled: LlamaEngine, words: Any) -> None:
    prompt = words("The capital of France is").input_ids
    said = await tokens(sampled, prompt, max_tokens=8, logprobs=3)
    ids = [*prompt, *(token.id for token in said)]
    scored = [item async for item in sampled.score_tokens(ids, 3) if not isinstance(item, Queued)]
    assert [token.id for [token] in scored] == ids[1:]
    for ours, [theirs] in zip(said, scored[len(prompt) - 1 :], strict=True):
        assert theirs.logprob == pytest.approx(ours.logprob, abs=0.3), "a batch and single tokens round differently"
        assert [other[0] for other in theirs.alternatives][0] == ours.id, "greedy: the likeliest"


async def test_a_prompt_uses_only_the_tokens_of_prompts_with_its_salt(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    reused: list[int] = []
    pieces = engine._pieces

    async def watched(body: Any) -> AsyncGenerator[dict[str, Any]]:
        asked.append(body)
        async with aclosing(pieces(body)) as found:
            async for piece in found:
                if piece["stop"]:
                    reused.append(piece["timings"]["cache_n"])
                yield piece

    monkeypatch.setattr(engine, "_pieces", watched)
    prompt = PROMPT * 4
    await answer(engine, prompt, max_tokens=2)
    await answer(engine, prompt, max_tokens=2)
    assert "id_slot" not in asked[-1]
    assert reused[-1] > 0, "llama.cpp chooses the slot, and uses what is in it"
    slots = len(engine._last)
    for number in range(slots):
        await answer(engine, prompt, max_tokens=2, salt=f"visitor {number}")
    assert reused[-slots:] == [0] * slots
    assert len({body["id_slot"] for body in asked[-slots:]}) == slots
    first = await answer(engine, prompt, max_tokens=2, salt="visitor 0")
    assert reused[-1] > 0, "its own"
    assert first == await answer(engine, prompt, max_tokens=2, salt="another visitor")
    assert reused[-1] == 0
    async with aclosing(engine.score_tokens(prompt, 1)) as items:
        assert await anext(items)
