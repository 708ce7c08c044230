"""What a request may ask for, on a GPU in bfloat16: each engine as it is made there, its steps captured in graphs."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from granite_demo.engine.factory import create_engine
from granite_demo.engine.interleaved.prefix_cache import common
from granite_demo.engine.protocol import Engine
from granite_demo.errors import GraniteDemoError
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models.config import Shape
from granite_demo.outputs.structured_output import Matcher
from granite_demo.types.engine_kinds import ENGINES
from granite_demo.types.events import Queued
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import SamplingParams
from tests.engine.contract import assert_greedy
from tests.engine.logprobs_reference import OPTIONS, draw_logprobs
from tests.engine.running import answer, reference, wait_idle
from tests.fakes import SOURCE
from tests.loaded import placed

pytestmark = pytest.mark.gpu

VOCABULARY = 1000
CONTEXT = 16384
PROMPT = [5 + index * 37 % 900 for index in range(40)]
COMPANY = [[40, 3, 9, 12], [33] * 7, list(range(2, 300))]
NOISE = 0.1
"""Nats by which one way to compute a step in bfloat16 may differ from another."""


def load(attention: str) -> LoadedModel:
    """A random Granite of four layers whose answers do not repeat one token."""
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.08,
        attention_multiplier=0.125,
        residual_multiplier=0.22,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    placement = placed(LoadOptions(device="cuda", dtype="bfloat16", attention=cast(Any, attention)))
    with torch.device("cuda"):
        model = GraniteForCausalLM._from_config(config, attn_implementation=attention, dtype=torch.bfloat16).eval()
    return LoadedModel(model, None, SOURCE, placement, CONTEXT, frozenset(), shape=Shape.from_config(config.to_dict()))


@pytest.fixture(scope="module", params=["batching", "static"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Both engines that a GPU may have."""
    if request.param == "batching" and find_spec("flash_attn") is None:
        pytest.skip("needs flash-attn")
    engine = create_engine(load("flash_attention_2" if request.param == "batching" else "sdpa"), ENGINES[request.param])
    assert any("CUDA graphs" in value for _, value, _ in engine.facts), engine.facts
    yield engine
    engine.close()


async def logits_after(engine: Engine, ids: list[int]) -> torch.Tensor:
    """The logits after each token, (n, VOCABULARY), by the engine's own scoring."""
    chunks = [item async for item in engine.score(ids, lambda at, rows: rows.cpu()) if not isinstance(item, Queued)]
    return torch.cat(chunks)


async def test_scores_are_those_of_one_forward_pass(engine: Engine) -> None:
    ids = (PROMPT * 100)[:3000]
    model = load("sdpa").model
    with torch.no_grad():
        expected = model(torch.tensor([ids], device="cuda")).logits[0].float().log_softmax(-1).cpu()
    beside = [asyncio.create_task(answer(engine, prompt, max_tokens=300)) for prompt in COMPANY]
    got = (await logits_after(engine, ids)).log_softmax(-1)
    assert (got - expected).abs().mean() < NOISE / 2
    assert [len(task) for task in await asyncio.gather(*beside)] == [300] * len(COMPANY)


async def test_a_greedy_answer_is_that_of_generate(engine: Engine) -> None:
    plain = load("sdpa")
    prompts = [PROMPT, *COMPANY]
    together = await asyncio.gather(*(answer(engine, prompt, max_tokens=200) for prompt in prompts))
    alike = []
    for prompt, ours in zip(prompts, together, strict=True):
        assert len(ours) == 200
        assert_greedy(plain, prompt, ours, noise=3 * NOISE)
        alike.append(common(ours, reference(plain, prompt, 200)))
    # They part where two tokens are about equally likely.
    assert max(alike) >= 5, alike


@pytest.mark.parametrize("options", OPTIONS, ids=str)
async def test_a_token_has_the_distribution_that_it_was_sampled_from(engine: Engine, options: dict[str, Any]) -> None:
    sampling = SamplingParams(seed=3, max_tokens=60, logprobs=5, **options)
    beside = [asyncio.create_task(answer(engine, prompt, max_tokens=100, temperature=1.0)) for prompt in COMPANY]
    got = await tokens_of(engine, sampling)
    await asyncio.gather(*beside)
    said = [token.id for token in got]
    rows = (await logits_after(engine, PROMPT + said))[len(PROMPT) - 1 : -1]
    differences = []
    for at, token in enumerate(got):
        own, after = rows[at].log_softmax(-1), draw_logprobs(rows[at : at + 1], sampling, PROMPT, said[:at])
        assert token.logprob is not None
        assert token.sampled is not None
        differences.append(abs(token.logprob - own[token.id].item()))
        if sampling.temperature:
            differences.append(abs(token.sampled - after[token.id].item()))
        else:
            differences.append((after[token.id] == -torch.inf).item() * 1.0)
        assert [value for _, value, _ in token.alternatives] == sorted(
            (value for _, value, _ in token.alternatives), reverse=True
        )
        assert token.alternatives[0][1] == pytest.approx(own.max().item(), abs=2 * NOISE)
    # A value at the edge of a cut may be in for one way to compute it and out for another.
    assert np.quantile(differences, 0.8) < NOISE, sorted(differences)[-10:]
    assert len(set(said)) > 5


async def tokens_of(engine: Engine, sampling: SamplingParams, matcher: Any = None) -> list[Token]:
    async with asyncio.timeout(120), aclosing(engine.generate(PROMPT, sampling, cast(Matcher, matcher))) as items:
        return [item async for item in items if isinstance(item, Token)]


class Cycle:
    """Allows one set of tokens after another."""

    def __init__(self, sets: Sequence[Sequence[int]]) -> None:
        self.sets, self.count, self.ended = sets, 0, False

    def allowed(self) -> np.ndarray:
        mask = np.zeros(VOCABULARY, dtype=bool)
        mask[list(self.sets[self.count % len(self.sets)])] = True
        return mask

    def accept(self, token_id: int) -> None:
        self.count += 1


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=["greedy", "sampled"])
async def test_a_constrained_answer_has_only_what_is_allowed(engine: Engine, options: dict[str, Any]) -> None:
    sets = [(1, 2, 3), (9,), tuple(range(40, 600))]
    alone = [await answer(engine, prompt, max_tokens=200, temperature=1.0, seed=1) for prompt in COMPANY]
    beside = [
        asyncio.create_task(answer(engine, prompt, max_tokens=200, temperature=1.0, seed=1)) for prompt in COMPANY
    ]
    got = await tokens_of(engine, SamplingParams(seed=3, max_tokens=60, logprobs=5, **options), Cycle(sets))
    assert len(got) == 60
    assert all(token.id in sets[at % 3] for at, token in enumerate(got))
    assert all(token.sampled == pytest.approx(0, abs=1e-4) for token in got[1::3])
    together = await asyncio.gather(*beside)
    # Beside others a row of a bfloat16 product may be rounded otherwise, and the answer goes another way from there.
    assert sum(one[:10] == other[:10] for one, other in zip(alone, together, strict=True)) >= 2
    await wait_idle(engine)


async def test_a_seed_repeats_and_another_differs(engine: Engine) -> None:
    sampling: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "max_tokens": 60}
    first, again, other = [await answer(engine, PROMPT, seed=seed, **sampling) for seed in (3, 3, 4)]
    assert first == again
    assert first != other


async def test_without_memory_one_request_fails_and_the_next_works(engine: Engine) -> None:
    expected = await answer(engine, PROMPT, max_tokens=20)
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    ballast = []
    for size in (2**30, 2**26, 2**22, 2**20):  # all that is left, in ever smaller pieces
        try:
            while True:
                ballast.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            continue
    long = (PROMPT * 400)[: CONTEXT - 100]
    errors = []
    for work in (answer(engine, long, max_tokens=20), logits_after(engine, long)):
        try:
            await work
        except GraniteDemoError as error:
            errors.append(error.user_text)
    ballast.clear()
    torch.cuda.empty_cache()
    assert await answer(engine, PROMPT, max_tokens=20) == expected
    assert len(await answer(engine, long, max_tokens=20)) == 20
    # What the batching engine has captured needs no more memory, so there only the scoring can fail.
    assert errors
    assert all("memory" in text for text in errors), errors
    await wait_idle(engine)
