"""Sampling in continuous batching, with made-up logits."""

import math

import numpy as np
import pytest
import torch
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

from granite_demo.engine.batching.sampler import STEPS_KEPT, BatchSampler, Row, token_of
from granite_demo.engine.sampling.logits_processors import pack
from granite_demo.engine.sampling.reference import Rows, choose
from granite_demo.engine.sampling.sampler import Sampler
from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import MAX_ALTERNATIVES, MAX_SEED, SamplingParams
from tests.engine import logprobs_reference

CPU = torch.device("cpu")
VOCABULARY = 50
SLOTS = 4
COLUMNS = 32
"""The columns for arguments in a batch: more than there are slots."""


def request(row: Row, position: int, name: str = "", prompt: list[int] | None = None) -> FutureRequestState:
    """Return a request that gets the token at ``position`` of its answer."""
    kwargs = {"row": row}
    state = RequestState(name or f"of {row.slot}", prompt or [0] * row.prompt_length, logit_processor_kwargs=kwargs)
    state.position_offset = row.prompt_length + position
    return FutureRequestState(state, True, {}, 1)


def arguments(sampler: BatchSampler, requests: list[FutureRequestState]) -> torch.Tensor:
    """Return the columns of a batch."""
    storage = torch.full((sampler.tensors_required, COLUMNS), 77, dtype=torch.int32)
    return sampler.prepare_tensor_args(requests, storage)


def step(sampler: BatchSampler, requests: list[FutureRequestState], logits: torch.Tensor) -> list[int]:
    """Return the chosen tokens."""
    scores = sampler(torch.zeros(0), logits.clone(), arguments(sampler, requests)[:, : len(logits)])
    choice: list[int] = scores.argmax(dim=-1).tolist()
    return choice


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((rows, VOCABULARY), generator=torch.Generator().manual_seed(seed)) * 3


def test_parameters_arrive_as_they_were_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Rows, torch.Tensor]] = []

    def spy(scores: torch.Tensor, rows: Rows, seen_tokens: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        seen.append((rows, slot))
        return scores.argmax(dim=-1)

    sampler = BatchSampler(VOCABULARY, SLOTS, CPU)
    monkeypatch.setattr(sampler, "_choose", spy)
    # A seed whose halves are negative as int32, the largest seed, and a small seed.
    seeds = [2**31, MAX_SEED, 2**32 - 1, 5]
    samplings = [
        SamplingParams(at / 2, 0.9, 10 * at, 1.0 + at, seed=seed, min_p=at / 8) for at, seed in enumerate(seeds)
    ]
    rows = [Row(sampling, at, 3) for at, sampling in enumerate(samplings)]
    step(sampler, [request(row, 100_000 + row.slot) for row in rows], logits_of(SLOTS))
    got, slot = seen[0]
    assert got.seed.tolist() == seeds
    assert got.position.tolist() == [100_000, 100_001, 100_002, 100_003]
    assert slot.tolist() == [0, 1, 2, 3]
    assert got.temperature.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert got.top_k.tolist() == [0, 10, 20, 30]
    assert got.top_p.tolist() == pytest.approx([0.9] * 4)
    assert got.penalty.tolist() == [1, 2, 3, 4]
    assert got.min_p.tolist() == [0.0, 0.125, 0.25, 0.375]


def test_the_choice_of_a_row_does_not_depend_on_the_batch() -> None:
    samplings = [
        SamplingParams(seed=1),
        SamplingParams(1.0, seed=2),
        SamplingParams(1.3, 0.8, 20, seed=3),
        SamplingParams(0.7, seed=MAX_SEED, min_p=0.1),
    ]
    logits = logits_of(SLOTS)
    sampler = BatchSampler(VOCABULARY, SLOTS, CPU)
    chosen = step(sampler, [request(Row(sampling, at, 5), 9) for at, sampling in enumerate(samplings)], logits)
    for at, sampling in enumerate(samplings):
        floats = (sampling.temperature, float(sampling.top_k), sampling.top_p, sampling.min_p, 1.0)
        numbers = [torch.tensor([value]) for value in (*floats, sampling.seed or 0, 9)]
        assert chosen[at] == choose(logits[at : at + 1], Rows(*numbers)).item()


def test_requests_without_a_new_token_have_no_column() -> None:
    sampler = BatchSampler(VOCABULARY, SLOTS, CPU)
    reading = request(Row(SamplingParams(), 2, 5), 0)
    reading.has_new_token = False
    slots = arguments(sampler, [reading, request(Row(SamplingParams(), 1, 5), 0)])[-2]
    assert slots[:SLOTS].tolist() == [1, SLOTS, SLOTS, SLOTS]


def test_padding_columns_write_to_no_slot() -> None:
    sampler = BatchSampler(VOCABULARY, SLOTS, CPU)
    sampling = SamplingParams(logprobs=1)
    step(sampler, [request(Row(sampling, slot, 5), 0) for slot in range(SLOTS)], logits_of(SLOTS))
    before = sampler._seen[:SLOTS].clone(), sampler._report[:, :SLOTS].clone()
    # One request in a batch that is padded to four rows.
    step(sampler, [request(Row(sampling, 3, 5), 1)], logits_of(SLOTS, seed=1))
    assert torch.equal(sampler._seen[:3], before[0][:3])
    assert torch.equal(sampler._report[:, :3], before[1][:, :3])
    assert not torch.equal(sampler._seen[3], before[0][3])


def test_default_rows_are_greedy_and_write_to_no_slot() -> None:
    sampler = BatchSampler(VOCABULARY, SLOTS, CPU)
    storage = torch.zeros((sampler.tensors_required, 1), dtype=torch.int32)
    sampler.fill_defaults(storage)
    logits = logits_of(1)
    assert sampler(torch.zeros(0), logits.clone(), storage).argmax() == logits.argmax()
    assert not sampler._seen[:SLOTS].any()


def test_a_row_with_nan_scores_nan_and_the_others_0() -> None:
    sampler = BatchSampler(VOCABULARY, SLOTS, CPU)
    logits = logits_of(2)
    logits[1, 7] = math.nan
    rows = [request(Row(SamplingParams(1.0, seed=1), slot, 5), 0) for slot in range(2)]
    scores = sampler(torch.zeros(0), logits, arguments(sampler, rows)[:, :2])
    # The computation of ModelRunner._sample.
    best, choice = torch.softmax(scores, dim=-1).max(dim=-1)
    assert best[0].log() == 0
    assert best[1].isnan()
    assert scores[0].isfinite().sum() == 1
    assert scores[0, choice[0]] == 0


def test_the_next_owner_of_a_slot_starts_without_penalties() -> None:
    sampler = BatchSampler(VOCABULARY, SLOTS, CPU)
    row = Row(SamplingParams(repetition_penalty=2.0), 1, 3)
    logits = torch.zeros((1, VOCABULARY))
    logits[0, 10:13] = torch.tensor([3.0, 2.9, 2.8])
    # The prompt has 10, the answer then 11, so 12 is next.
    assert [step(sampler, [request(row, at, "a", [10, 1, 1])], logits)[0] for at in range(2)] == [11, 12]
    assert step(sampler, [request(row, 0, "b", [12, 1, 1])], logits) == [10]


def test_without_penalty_no_tokens_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = BatchSampler(VOCABULARY, SLOTS, CPU)
    monkeypatch.setattr(sampler, "_mark", pytest.fail)
    step(sampler, [request(Row(SamplingParams(), 0, 3), 0)], logits_of(1))


def test_log_probabilities_of_the_last_steps_can_be_read() -> None:
    sampler = BatchSampler(VOCABULARY, SLOTS, CPU)
    row = Row(SamplingParams(1.0, seed=4, logprobs=3, repetition_penalty=1.5), 2, 3)
    steps = [logits_of(1, seed) for seed in range(2 * STEPS_KEPT)]
    chosen = []
    for position, logits in enumerate(steps):
        chosen.append(step(sampler, [request(row, position)], logits)[0])
        if position % STEPS_KEPT != STEPS_KEPT - 1:
            continue
        table = sampler.read()
        for at in range(position - STEPS_KEPT + 1, position + 1):
            token = token_of(chosen[at], row, at, table)
            expected = torch.log_softmax(steps[at][0], dim=-1)  # before penalty and temperature
            values, ids = expected.topk(3)
            assert token.id == chosen[at]
            assert token.logprob == pytest.approx(expected[chosen[at]].item())
            assert [one[0] for one in token.alternatives] == ids.tolist()
            assert [one[1] for one in token.alternatives] == pytest.approx(values.tolist())


def test_only_requests_for_log_probabilities_get_them() -> None:
    sampler = BatchSampler(VOCABULARY, SLOTS, CPU)
    quiet, asking = Row(SamplingParams(), 0, 3), Row(SamplingParams(logprobs=0), 1, 3)
    step(sampler, [request(quiet, 0)], logits_of(1))
    assert not sampler.with_logprobs
    step(sampler, [request(quiet, 1), request(asking, 0)], logits_of(2))
    assert sampler.with_logprobs
    table = sampler.read()
    assert token_of(5, quiet, 1, table) == Token(5)
    assert token_of(5, asking, 0, table).logprob is not None
    assert token_of(5, asking, 0, table).alternatives == ()


def test_the_maximum_number_of_alternatives_is_possible() -> None:
    sampler = BatchSampler(VOCABULARY, SLOTS, CPU)
    row = Row(SamplingParams(logprobs=MAX_ALTERNATIVES), 0, 3)
    step(sampler, [request(row, 0)], logits_of(1))
    assert len(token_of(1, row, 0, sampler.read()).alternatives) == MAX_ALTERNATIVES


def test_each_row_has_the_log_probabilities_of_transformers() -> None:
    options = [*logprobs_reference.OPTIONS, {"temperature": 0.9}]
    sampler = BatchSampler(VOCABULARY, len(options), CPU)
    samplings = [SamplingParams(seed=at, logprobs=4, **option) for at, option in enumerate(options)]
    prompt, answers = [3, 4, 4, 9], [list[int]() for _ in options]
    for position in range(10):
        logits = logits_of(len(options), position)
        batch = [
            request(Row(sampling, slot, len(prompt)), position, prompt=prompt)
            for slot, sampling in enumerate(samplings)
        ]
        chosen, table = step(sampler, batch, logits), sampler.read()
        for slot, sampling in enumerate(samplings):
            token = token_of(chosen[slot], Row(sampling, slot, len(prompt)), position, table)
            logprobs_reference.check(token, logits[slot : slot + 1], sampling, prompt, answers[slot])
            answers[slot].append(token.id)


def test_both_samplers_choose_the_same_tokens() -> None:
    for option in logprobs_reference.OPTIONS:
        sampling = SamplingParams(seed=5, **option)
        one, many = Sampler(sampling, [3, 4], CPU), BatchSampler(VOCABULARY, SLOTS, CPU)
        for position in range(15):
            logits = logits_of(1, position)
            batch = [request(Row(sampling, 2, 2), position, prompt=[3, 4])]
            assert step(many, batch, logits) == [one(logits).id]


def test_an_answer_that_is_submitted_again_is_counted() -> None:
    sampler = BatchSampler(VOCABULARY, SLOTS, CPU)
    row = Row(SamplingParams(frequency_penalty=1.0), 1, 2)
    logits = torch.zeros((1, VOCABULARY))
    logits[0, 10:13] = torch.tensor([3.5, 3.0, 2.8])
    # The 10 in the prompt does not count. The answer has it twice: 1.5, 3.0, 2.8.
    again = request(row, 2, "again", [10, 10, 10, 10])
    assert step(sampler, [again], logits) == [11]
    assert step(sampler, [request(row, 3, "again", [10, 10, 10, 10])], logits) == [12]
    assert step(sampler, [request(row, 0, "another", [10, 10])], logits) == [10]


def test_the_next_owner_of_a_slot_and_other_slots_have_no_bias() -> None:
    sampler = BatchSampler(VOCABULARY, SLOTS, CPU)
    biased, plain = SamplingParams(logit_bias=((7, 50.0),)), SamplingParams()
    logits = logits_of(2)
    own = logits.argmax(dim=-1).tolist()
    batch = [request(Row(biased, 0, 2), 0, "a"), request(Row(plain, 1, 2), 0, "b")]
    assert step(sampler, batch, logits) == [7, own[1]]
    batch = [request(Row(plain, 0, 2), 0, "c"), request(Row(biased, 1, 2), 0, "d")]
    assert step(sampler, batch, logits) == [own[0], 7]


def test_requests_without_changes_have_their_own_graphs() -> None:
    sampler = BatchSampler(VOCABULARY, SLOTS, CPU)
    step(sampler, [request(Row(SamplingParams(repetition_penalty=1.5), 0, 3), 0)], logits_of(1))
    assert not sampler.adjusting
    step(sampler, [request(Row(SamplingParams(presence_penalty=1.0), 0, 3), 0, "b")], logits_of(1))
    assert sampler.adjusting
    step(sampler, [request(Row(SamplingParams(), 0, 3), 0, "c")], logits_of(1))
    assert not sampler.adjusting


def test_only_tokens_of_the_mask_are_chosen() -> None:
    sampler = BatchSampler(VOCABULARY, SLOTS, CPU)
    mask = np.arange(VOCABULARY) % 7 == 3
    row = Row(SamplingParams(2.0, seed=1, logprobs=MAX_ALTERNATIVES), 0, 3, pack(mask))
    for position in range(20):
        chosen = step(sampler, [request(row, position)], logits_of(1, position))[0]
        assert mask[chosen]
        for token, _, after in token_of(chosen, row, position, sampler.read()).alternatives:
            assert after is not None
            assert (after > -math.inf) == mask[token]
