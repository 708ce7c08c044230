"""Choosing tokens, on made-up logits."""

import pytest
import torch

from granite_demo.engine.sampling import Sampler
from granite_demo.errors import EngineError
from granite_demo.types import SamplingParams

CPU = torch.device("cpu")
LOGITS = torch.tensor([[0.0, 3.0, 2.9, 1.0, -5.0]])


def draws(count: int = 200, **sampling: float) -> set[int]:
    sampler = Sampler(SamplingParams(**sampling), [0], CPU)  # type: ignore[arg-type]
    return {sampler(LOGITS) for _ in range(count)}


def test_temperature_zero_takes_the_likeliest() -> None:
    assert draws(temperature=0.0) == {1}


def test_top_k_keeps_that_many() -> None:
    assert draws(temperature=2.0, top_k=2, seed=1) == {1, 2}


def test_top_p_keeps_the_likeliest_up_to_that_total() -> None:
    assert draws(temperature=1.0, top_p=0.9, seed=1) == {1, 2}


def test_without_cuts_rare_tokens_come_up_too() -> None:
    assert {0, 1, 2, 3} <= draws(temperature=2.0, seed=1)


def test_frequencies_follow_the_probabilities() -> None:
    sampler = Sampler(SamplingParams(temperature=1.0, seed=3), [0], CPU)
    counts = torch.bincount(torch.tensor([sampler(LOGITS) for _ in range(4000)]), minlength=5) / 4000
    assert torch.allclose(counts, torch.softmax(LOGITS[0], -1), atol=0.03)


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), [3], CPU)
    assert [sampler(LOGITS) for _ in range(3)] == [1, 2, 1]


def test_seeds_repeat_and_differ() -> None:
    def run(seed: int) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.5, seed=seed), [0], CPU)
        return [sampler(LOGITS) for _ in range(30)]

    assert run(5) == run(5)
    assert run(5) != run(6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_is_an_error(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature), [0], CPU)
    with pytest.raises(EngineError, match="not a number"):
        sampler(torch.full((1, 5), float("nan")))
