"""The choice of tokens, compared with the processors of transformers and with the softmax."""

import random
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from granite_demo.engine.sampling import cpu
from granite_demo.engine.sampling.dispatch import chooser
from granite_demo.engine.sampling.reference import (
    Rows,
    choose,
    cut_off,
    gumbel,
    noise,
    penalise,
    penalise_and_choose,
    tempered,
)
from granite_demo.engine.sampling.sampler import Sampler
from granite_demo.errors import EngineError
from granite_demo.types.sampling_params import SamplingParams
from tests.engine import logprobs_reference

CPU = torch.device("cpu")
VOCABULARY = 49_159
LOGITS = torch.tensor([[0.0, 3.0, 2.9, 1.0, -5.0]])


def rows(*requests: dict[str, float]) -> Rows:
    """Return a row for each request. All parameters that it does not have are off."""
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1, "min_p": 0, "penalty": 1, "seed": 0, "position": 0}
    return Rows(
        **{
            name: torch.tensor(
                [request.get(name, value) for request in requests],
                dtype=torch.int64 if name in ("seed", "position") else torch.float32,
            )
            for name, value in defaults.items()
        }
    )


# Which tokens can be drawn


@pytest.mark.parametrize("scale", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    "cuts",
    [
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": VOCABULARY},
        {"top_k": VOCABULARY + 5},
        {"top_p": 0.1},
        {"top_p": 0.9},
        {"top_p": 0.999},
        {"min_p": 0.02},
        {"min_p": 1.0},
        {"top_k": 50, "top_p": 0.9, "min_p": 0.05},
        {},
    ],
    ids=str,
)
def test_the_kept_tokens_are_those_of_transformers(scale: float, temperature: float, cuts: dict[str, Any]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, VOCABULARY) * scale
    scores = logits / temperature - (logits / temperature).amax()
    kept = scores >= cut_off(scores, rows({"temperature": temperature, **cuts}))[:, None]
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    if "top_k" in cuts:
        warpers.append(TopKLogitsWarper(cuts["top_k"]))
    if "top_p" in cuts:
        warpers.append(TopPLogitsWarper(cuts["top_p"]))
    if "min_p" in cuts:
        warpers.append(MinPLogitsWarper(cuts["min_p"]))
    theirs: Any = LogitsProcessorList(warpers)(torch.zeros(1, 1, dtype=torch.long), logits.double())  # type: ignore[arg-type]
    differ = kept ^ torch.isfinite(theirs)
    # In float32, a sum of 49,159 numbers can be off by a token that is drawn once in a million draws.
    assert differ.sum() <= ("top_p" in cuts)
    assert torch.softmax(scores, dim=-1)[differ].sum() < 1e-6


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_the_penalty_is_that_of_transformers(penalty: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, VOCABULARY)
    ids = torch.randint(VOCABULARY, (1, 500))
    seen = torch.zeros(1, VOCABULARY, dtype=torch.bool)
    seen[0, ids[0]] = True
    theirs: Any = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    assert torch.equal(penalise(logits, seen, torch.tensor([penalty])), theirs)


def draws(count: int = 300, **sampling: Any) -> set[int]:
    sampler = Sampler(SamplingParams(**sampling), [0], CPU)
    return {sampler(LOGITS).id for _ in range(count)}


def test_temperature_zero_chooses_the_most_probable_token() -> None:
    assert draws(temperature=0.0, seed=1, top_k=3, min_p=0.1) == {1}


def test_only_kept_tokens_are_drawn() -> None:
    assert draws(temperature=2.0, seed=1) >= {0, 1, 2, 3}
    assert draws(temperature=2.0, seed=1, top_k=2) == {1, 2}
    assert draws(temperature=1.0, seed=1, top_p=0.9) == {1, 2}
    assert draws(temperature=1.0, seed=1, min_p=0.1) == {1, 2, 3}


# The draw


def test_frequencies_follow_the_softmax() -> None:
    count = 40_000
    logits = torch.tensor([[0.0, 3.0, 2.9, 1.0, -1.0, -8.0]]).expand(count, -1)
    seeds = rows(*({"temperature": 1.5, "seed": 7, "position": position} for position in range(count)))
    expected = torch.softmax(logits[0] / 1.5, dim=-1)
    counted = torch.bincount(choose(logits, seeds), minlength=6) / count
    # Four standard deviations.
    assert ((counted - expected).abs() <= 4 * (expected * (1 - expected) / count).sqrt() + 1e-9).all()


def test_the_noise_has_a_gumbel_distribution() -> None:
    noise = gumbel(torch.arange(20), torch.arange(20), VOCABULARY)
    assert torch.isfinite(noise).all()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(torch.pi**2 / 6, abs=0.02)


@pytest.mark.parametrize("one", [0, 5, 2**63 - 1])
def test_noise_changes_with_the_seed_the_position_and_the_token(one: int) -> None:
    seed, position = torch.tensor([one, one, one ^ 1]), torch.tensor([3, 4, 3])
    noise = gumbel(seed, position, 5_000)
    assert torch.equal(noise, gumbel(seed, position, 5_000))
    assert torch.corrcoef(torch.cat((noise, noise[:1].roll(1, 1)))).fill_diagonal_(0).abs().max() < 0.08


def test_a_row_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    requests: list[dict[str, float]] = [
        {"temperature": 0.0, "top_k": 5, "min_p": 0.5},
        {"seed": 1},
        {"temperature": 2.0, "top_k": 20, "seed": 2, "position": 9},
        {"temperature": 0.7, "top_p": 0.8, "seed": 2**62, "position": 2**20},
        {"min_p": 0.1, "seed": 4},
        {"temperature": 1.3, "top_k": 100, "top_p": 0.95, "min_p": 0.01, "penalty": 1.4, "seed": 5},
        {"temperature": 0.0, "penalty": 1.8},
    ]
    count = len(requests)
    logits = torch.randn(count, VOCABULARY) * 4
    seen = torch.rand(count + 2, VOCABULARY) < 0.3
    slot = torch.tensor([8, 0, 3, 1, 2, 5, 4])
    together = penalise_and_choose(logits.clone(), rows(*requests), seen, slot)
    alone = [
        penalise_and_choose(logits[index : index + 1].clone(), rows(request), seen, slot[index : index + 1])
        for index, request in enumerate(requests)
    ]
    assert together.tolist() == [int(choice) for choice in alone]
    assert int(together[0]) == int(logits[0].argmax())
    assert int(together[-1]) == int(penalise(logits[-1:], seen[slot[-1:]], torch.tensor([1.8])).argmax())


def test_unused_cuts_can_be_omitted() -> None:
    torch.manual_seed(0)
    logits = torch.randn(50, 500) * 3
    plain = rows(*({"seed": index, "min_p": 0.01} for index in range(50)))
    assert torch.equal(choose(logits, plain), choose(logits, plain, cut_k=False, cut_p=False))
    cut = replace(plain, top_k=torch.full((50,), 2.0))
    assert not torch.equal(choose(logits, cut), choose(logits, cut, cut_k=False))
    cut = replace(plain, top_p=torch.full((50,), 0.3))
    assert not torch.equal(choose(logits, cut), choose(logits, cut, cut_p=False))


def test_a_cpu_needs_no_kernel() -> None:
    assert chooser(CPU) is cpu.penalise_and_choose


@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("vocabulary", [7, 64, 5_000])
def test_a_cpu_chooses_what_a_gpu_chooses(vocabulary: int, scale: float) -> None:
    torch.manual_seed(vocabulary)
    pick = random.Random(0)
    for position in range(80):
        logits = torch.randn(1, vocabulary) * scale
        if position % 3 == 0:
            logits = logits.masked_fill(torch.rand(1, vocabulary) < 0.7, -torch.inf)
            logits[0, 3] = 1.0
        if position % 4 == 0:
            logits = logits.round()  # equal scores
        row = rows(
            {
                "temperature": pick.choice([0.0, 0.01, 0.7, 1.0, 2.0]),
                "top_k": pick.choice([0, 1, 3, 50, 4_000, 10_000]),
                "top_p": pick.choice([1.0, 0.001, 0.3, 0.9, 0.999]),
                "min_p": pick.choice([0.0, 0.05, 1.0]),
                "penalty": pick.choice([1.0, 1.3]),
                "seed": pick.getrandbits(63),
                "position": position,
            }
        )
        seen, slot = torch.rand(1, vocabulary) < 0.3, torch.zeros(1, dtype=torch.long)
        expected = penalise_and_choose(logits.clone(), row, seen, slot)
        assert torch.equal(cpu.penalise_and_choose(logits.clone(), row, seen, slot), expected)
        if row.temperature:
            scores = tempered(penalise(logits, seen, row.penalty), row)
            assert torch.equal(scores >= cut_off(scores, row), scores >= cpu.cut_off(scores, row))


@pytest.mark.parametrize("seed", [0, 5, 2**62 + 12345, 2**63 - 1])
def test_noise_for_some_tokens_is_that_for_all(seed: int) -> None:
    everything = gumbel(torch.tensor([seed]), torch.tensor([77]), VOCABULARY)[0]
    for step in (1, 3, 1000):
        tokens = np.arange(0, VOCABULARY, step, dtype=np.uint64)
        some = torch.from_numpy(cpu.gumbel(seed, 77, tokens))
        torch.testing.assert_close(some, everything[::step], rtol=1e-6, atol=1e-6)


def test_rows_are_of_one_length() -> None:
    made = rows({}, {})
    assert {getattr(made, option.name).shape for option in fields(Rows)} == {(2,)}


# One request


def test_a_sampler_chooses_what_a_batch_chooses() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"temperature": 1.2, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "seed": 11}
    sampler = Sampler(SamplingParams(repetition_penalty=1.3, **options), [4, 5], CPU)
    seen = torch.zeros(1, 300, dtype=torch.bool)
    seen[0, [4, 5]] = True
    for position in range(20):
        logits = torch.randn(1, 300) * 3
        row = rows({**options, "penalty": 1.3, "position": position})
        expected = int(penalise_and_choose(logits.clone(), row, seen, torch.zeros(1, dtype=torch.long)))
        assert sampler(logits).id == expected
        seen[0, expected] = True


def test_the_penalty_counts_prompt_and_answer() -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), [3], CPU)
    assert [sampler(LOGITS).id for _ in range(3)] == [1, 2, 1]


def test_seeds_repeat_and_differ() -> None:
    def run(seed: int) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.5, seed=seed), [0], CPU)
        return [sampler(LOGITS).id for _ in range(30)]

    assert run(5) == run(5)
    assert run(5) != run(6)
    assert len(set(run(5))) > 1


def test_the_logits_are_not_changed() -> None:
    logits = LOGITS.clone()
    Sampler(SamplingParams(temperature=1.5, repetition_penalty=1.5, seed=1, logprobs=2), [1], CPU)(logits)
    assert torch.equal(logits, LOGITS)


def test_log_probabilities_are_those_of_the_model() -> None:
    expected = torch.log_softmax(LOGITS[0], dim=-1)
    sampling = SamplingParams(temperature=2.0, top_k=2, repetition_penalty=3.0, seed=1, logprobs=3)
    token = Sampler(sampling, [1], CPU)(LOGITS)
    assert token.logprob == pytest.approx(float(expected[token.id]))
    assert [index for index, *_ in token.alternatives] == [1, 2, 3]
    assert [value for _, value, _ in token.alternatives] == pytest.approx(expected[[1, 2, 3]].tolist())


@pytest.mark.parametrize("options", logprobs_reference.OPTIONS, ids=str)
def test_the_logprobs_of_the_draw_are_those_of_transformers(options: dict[str, Any]) -> None:
    sampling = SamplingParams(seed=9, logprobs=6, **options)
    prompt = [3, 4, 4, 9]
    sampler = Sampler(sampling, prompt, CPU)
    answer: list[int] = []
    for step in range(12):
        logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(step)) * 3
        token = sampler(logits)
        logprobs_reference.check(token, logits, sampling, prompt, answer)
        answer.append(token.id)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [torch.full((1, 5), float("nan")), torch.tensor([[1.0, float("nan"), 0.0]])])
def test_nan_is_an_error(temperature: float, logits: torch.Tensor) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature), [0], CPU)
    with pytest.raises(EngineError, match="not a number"):
        sampler(logits)


def test_a_token_id_beyond_16_bits_is_exact() -> None:
    logits = torch.zeros(1, 200_000)
    logits[0, 199_997] = 1
    assert Sampler(SamplingParams(), [0], CPU)(logits).id == 199_997


def test_the_highest_uniform_number_has_finite_noise() -> None:
    # A search found these 24 bits of ones. Rounded up to 1, the noise would be infinite and the token always chosen.
    at = torch.tensor([7]), torch.tensor([2765])
    highest = noise(*at, torch.tensor([43077]))
    assert 16 < highest.item() < 17
    some = cpu.gumbel(7, 2765, np.array([43077], dtype=np.uint64))
    assert some.item() == pytest.approx(highest.item(), rel=1e-6)
