"""Tests for scoring a text: values with the sample model and torch, edge cases with a fake engine."""

import asyncio
import math
from contextlib import aclosing
from dataclasses import replace

import pytest
import torch

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.backends.scoring import score
from granite_demo.engine.protocol import Engine
from granite_demo.errors import ContextOverflowError, EngineError, InvalidRequestError
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.prompts.tokenizer import encode
from granite_demo.types.events import Queued, ScoreSummary
from granite_demo.types.logprobs import ScoredToken, Token
from granite_demo.types.requests import ScoreRequest
from granite_demo.types.sampling_params import SamplingParams
from tests.fakes import FakeEngine

TEXT = "The capital of France is Paris, and a café there costs 3 € 😀."


async def scored(ready: ReadyModel, request: ScoreRequest) -> tuple[list[ScoredToken], ScoreSummary]:
    events = [event async for event in score(ready, request)]
    summary = events.pop()
    assert isinstance(summary, ScoreSummary)
    assert all(isinstance(event, ScoredToken) for event in events)
    return [event for event in events if isinstance(event, ScoredToken)], summary


def fake(sample: LoadedModel) -> tuple[FakeEngine, ReadyModel]:
    engine = FakeEngine([])
    return engine, ReadyModel(sample, engine)


async def test_scores_and_perplexity_equal_plain_torch(engine: Engine, sample: LoadedModel) -> None:
    tokens, summary = await scored(ReadyModel(sample, engine), ScoreRequest(TEXT, alternatives=3))
    ids = torch.tensor([encode(sample.tokenizer, TEXT)])
    assert [token.id for token in tokens] == ids[0].tolist()
    assert "".join(token.text for token in tokens) == TEXT
    with torch.no_grad():
        output = sample.model(ids, labels=ids)
    rows = torch.log_softmax(output.logits[0].float(), dim=-1)
    first = tokens[0]
    assert (first.logprob, first.entropy, first.alternatives) == (None, None, ())
    for token, row in zip(tokens[1:], rows, strict=False):
        assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-3)
        assert token.entropy == pytest.approx(-(row.exp() * row).sum().item(), abs=1e-3)
        assert token.sampled is None
        best = row.topk(3)
        assert [other.id for other in token.alternatives] == best.indices.tolist()
        assert [other.logprob for other in token.alternatives] == pytest.approx(best.values.tolist(), abs=1e-3)
        assert token.alternatives[0].text == sample.tokenizer.decode([token.alternatives[0].id])
    assert summary.tokens == len(tokens)
    assert summary.logprob == pytest.approx(sum(token.logprob or 0 for token in tokens))
    assert summary.perplexity == pytest.approx(math.exp(output.loss.item()), rel=1e-3)
    assert summary.seconds > 0


async def test_generated_tokens_have_the_same_scores(engine: Engine, sample: LoadedModel) -> None:
    prompt = encode(sample.tokenizer, "Once upon a time")
    answer = [item async for item in engine.generate(prompt, SamplingParams(max_tokens=6, logprobs=2))]
    generated = [item for item in answer if isinstance(item, Token)]
    request = ScoreRequest(token_ids=(*prompt, *(token.id for token in generated)), alternatives=2)
    tokens, _ = await scored(ReadyModel(sample, engine), request)
    for token, expected in zip(tokens[len(prompt) :], generated, strict=True):
        assert token.id == expected.id
        assert token.logprob == pytest.approx(expected.logprob, abs=1e-3)
        assert [other.id for other in token.alternatives] == [index for index, *_ in expected.alternatives]


@pytest.mark.parametrize("alternatives", [0, 1, 20])
async def test_the_number_of_alternatives(sample: LoadedModel, alternatives: int) -> None:
    _, ready = fake(sample)
    tokens, _ = await scored(ready, ScoreRequest(TEXT, alternatives=alternatives))
    assert {len(token.alternatives) for token in tokens[1:]} == {alternatives}


async def test_a_single_token_has_no_perplexity(sample: LoadedModel) -> None:
    _, ready = fake(sample)
    tokens, summary = await scored(ready, ScoreRequest(token_ids=(5,)))
    assert [token.logprob for token in tokens] == [None]
    assert (summary.tokens, summary.logprob, summary.perplexity) == (1, 0.0, None)


async def test_control_tokens_are_text_by_default(sample: LoadedModel) -> None:
    _, ready = fake(sample)
    text, end = f"a{sample.tokenizer.eos_token}b", sample.tokenizer.eos_token_id
    tokens, _ = await scored(ready, ScoreRequest(text, special_tokens=True))
    assert end in [token.id for token in tokens]
    tokens, _ = await scored(ready, ScoreRequest(text))
    assert end not in [token.id for token in tokens]
    assert "".join(token.text for token in tokens) == text


async def test_a_text_that_does_not_fit_raises(sample: LoadedModel) -> None:
    _, ready = fake(replace(sample, context_length=10))
    await scored(ready, ScoreRequest(token_ids=tuple(range(10))))
    with pytest.raises(ContextOverflowError, match="11 tokens"):
        await scored(ready, ScoreRequest(token_ids=tuple(range(11))))
    with pytest.raises(InvalidRequestError, match="is not a token id"):
        await scored(ready, ScoreRequest(token_ids=(10**7,)))


async def test_queued_events_come_first_and_errors_last(sample: LoadedModel) -> None:
    engine, ready = fake(sample)
    engine.queued, engine.error = [Queued(1), Queued(0)], EngineError("broken")
    events: list[object] = []
    with pytest.raises(EngineError, match="broken"):
        async for event in score(ready, ScoreRequest(TEXT)):
            events.append(event)
    assert events[:2] == engine.queued
    assert len(events) == 2 + len(encode(sample.tokenizer, TEXT))
    assert engine.running == 0


async def test_closing_the_stream_stops_the_engine(sample: LoadedModel) -> None:
    engine, ready = fake(sample)
    async with aclosing(score(ready, ScoreRequest(TEXT))) as events:
        async for _ in events:
            break
    await asyncio.sleep(0)
    assert (engine.running, engine.closed_streams) == (0, 1)


async def test_an_output_that_is_not_a_number_raises(engine: Engine, sample: LoadedModel) -> None:
    def spoil(module: object, arguments: object, output: torch.Tensor) -> torch.Tensor:
        return output * float("nan")

    hook = sample.model.get_output_embeddings().register_forward_hook(spoil)
    with pytest.raises(EngineError, match="not a number"):
        await scored(ReadyModel(sample, engine), ScoreRequest(TEXT))
    hook.remove()
    await scored(ReadyModel(sample, engine), ScoreRequest(TEXT))
