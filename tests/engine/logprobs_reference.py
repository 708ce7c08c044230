"""The expected log probabilities of a token, from the processors of transformers and plain arithmetic."""

from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import SamplingParams

OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 7},
    {"temperature": 1.5, "top_p": 0.8},
    {"temperature": 1.5, "min_p": 0.1},
    {"repetition_penalty": 1.8},
    {"frequency_penalty": 1.5},
    {"temperature": 1.0, "presence_penalty": 2.0},
    {"temperature": 1.0, "frequency_penalty": -2.0},
    {"temperature": 1.0, "logit_bias": ((7, 4.0), (8, -100.0))},
    {
        "temperature": 1.3,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.4,
        "frequency_penalty": 0.8,
        "presence_penalty": 0.6,
        "logit_bias": ((3, 2.5), (11, -3.0)),
    },
]


def check(token: Token, logits: torch.Tensor, sampling: SamplingParams, prompt: list[int], answer: list[int]) -> None:
    """Check the values of ``token``, which was chosen from ``logits``, shape (1, V), after ``answer``."""
    own, after = torch.log_softmax(logits[0], dim=-1), draw_logprobs(logits, sampling, prompt, answer)
    assert after[token.id] > -torch.inf
    assert token.logprob == pytest.approx(own[token.id].item(), abs=1e-5)
    assert token.sampled == pytest.approx(0.0 if not sampling.temperature else after[token.id].item(), abs=1e-4)
    assert token.entropy == pytest.approx(-(own.exp() * own).sum().item(), abs=1e-4)
    values, ids = own.topk(sampling.logprobs or 0)
    assert [one[0] for one in token.alternatives] == ids.tolist()
    assert [one[1] for one in token.alternatives] == pytest.approx(values.tolist(), abs=1e-5)
    assert [one[2] for one in token.alternatives] == pytest.approx(after[ids].tolist(), abs=1e-4)


def draw_logprobs(logits: torch.Tensor, sampling: SamplingParams, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Return the log probabilities of the draw, shape (V,)."""
    ids: Any = torch.tensor([prompt + answer])
    scores: Any = logits.clone()
    if sampling.logit_bias:
        scores = SequenceBiasLogitsProcessor([[[token], value] for token, value in sampling.logit_bias])(ids, scores)
    if sampling.repetition_penalty != 1:
        scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, scores)
    scores = scores.clone()
    for token in set(answer):
        scores[0, token] -= answer.count(token) * sampling.frequency_penalty + sampling.presence_penalty
    if not sampling.temperature:
        best = scores[0].argmax()
        return torch.full_like(scores[0], -torch.inf).index_fill(0, best, 0.0)
    warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    warped: Any = LogitsProcessorList(warpers)(ids, scores)
    return torch.log_softmax(warped[0], dim=-1)
