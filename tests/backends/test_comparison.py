"""Tests for the comparison of two precisions: values with the sample model and torch, the rest with fakes."""

import asyncio
import copy
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.normalizers import Lowercase

from granite_demo.backends import comparison
from granite_demo.backends.comparison import compare
from granite_demo.backends.local import LocalBackend
from granite_demo.backends.model_manager import ModelManager, ReadyModel
from granite_demo.backends.open_model import open_model
from granite_demo.engine.factory import create_engine
from granite_demo.engine.protocol import Engine
from granite_demo.errors import ContextOverflowError, InvalidRequestError, OutOfMemoryError
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models.catalogue import SAMPLE
from granite_demo.prompts.tokenizer import encode
from granite_demo.types.comparison import Comparing, Comparison
from granite_demo.types.load_options import LoadOptions, Report
from granite_demo.types.model_status import Chosen
from granite_demo.types.requests import CompareRequest
from tests.fakes import SETUP, FakeEngine
from tests.loaded import load_checkpoint
from tests.tinymodels import write_checkpoint

TEXT = "The capital of France is Paris. In spring, when the chestnuts flower, everybody wants to be there."
EXACT = LoadOptions(device="cpu", dtype="float32", quantization="none")
ROUNDED = replace(EXACT, dtype="bfloat16")
Lease = Callable[[LoadOptions], AbstractAsyncContextManager[ReadyModel]]


async def run_comparison(lease: Lease, request: CompareRequest) -> tuple[list[Comparing], Comparison]:
    events = [event async for event in compare(lease, request)]
    result = events.pop()
    assert isinstance(result, Comparison)
    return [event for event in events if isinstance(event, Comparing)], result


@pytest.fixture(scope="module")
def rounded(sample_path: Path) -> LoadedModel:
    """The sample model in bfloat16."""
    return load_checkpoint(sample_path, ROUNDED, SAMPLE)


@pytest.fixture(scope="module")
def rounded_engine(rounded: LoadedModel) -> Iterator[Engine]:
    engine = create_engine(rounded)
    yield engine
    engine.close()


def leasing(models: dict[LoadOptions, ReadyModel], log: list[str] | None = None) -> Lease:
    log = [] if log is None else log

    @asynccontextmanager
    async def lease(options: LoadOptions) -> AsyncGenerator[ReadyModel]:
        log.append(f"takes {options.dtype}")
        try:
            yield models[options]
        finally:
            log.append(f"returns {options.dtype}")

    return lease


@pytest.mark.release
async def test_bfloat16_against_float32_equals_plain_torch(
    engine: Engine, sample: LoadedModel, rounded_engine: Engine, rounded: LoadedModel
) -> None:
    models = {EXACT: ReadyModel(sample, engine), ROUNDED: ReadyModel(rounded, rounded_engine)}
    log: list[str] = []
    progress, result = await run_comparison(leasing(models, log), CompareRequest(TEXT, EXACT, ROUNDED))
    assert log == ["takes float32", "returns float32", "takes bfloat16", "returns bfloat16"]
    fractions = [event.fraction or 0.0 for event in progress]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 0.9)

    ids = encode(sample.tokenizer, TEXT)
    with torch.no_grad():
        p, q = (
            torch.log_softmax(loaded.model(torch.tensor([ids])).logits[0, :-1].float(), dim=-1).double()
            for loaded in (sample, rounded)
        )
    expected = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)
    assert [token.id for token in result.tokens] == ids[1:]
    assert "".join(token.text for token in result.tokens) == TEXT[len(sample.tokenizer.decode(ids[:1])) :]
    # In chunks of another size, bfloat16 rounds differently: by about as much as it differs from float32.
    assert [token.divergence for token in result.tokens] == pytest.approx(expected.tolist(), abs=1e-2)
    assert 0 < result.mean_divergence < 0.05
    assert result.agreement > 0.8
    for place, token in enumerate(result.tokens):
        assert token.reference == pytest.approx(p[place, token.id].item(), abs=1e-3)
        assert token.other == pytest.approx(q[place, token.id].item(), abs=0.3)
        assert token.reference_top == sample.tokenizer.decode([int(p[place].argmax())])
        assert token.agree == (token.reference_top == token.other_top)
    assert result.reference.perplexity == pytest.approx((-p[range(len(p)), ids[1:]].mean()).exp().item(), rel=1e-3)
    assert (result.reference.label, result.other.label) == ("float32", "bfloat16")
    assert result.reference.weights_bytes == sample.weight_bytes > (result.other.weights_bytes or 0)
    assert result.reference.prefill_rate > 0
    assert (result.reference.decode_rate or 0) > 0
    assert ("Precision", "bfloat16") in [fact[:2] for fact in result.other.facts]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "model", "granite")


WORDS = " ".join(f"w{index * 7 % 60 + 2}" for index in range(40))


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
async def test_quantized_against_plain_equals_plain_torch(tiny: Path, tmp_path: Path, quantization: Any) -> None:
    plain = LoadOptions(str(tiny), device="cpu", dtype="float32", quantization="none")
    packed = replace(plain, quantization=quantization)

    def load(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        return open_model(tmp_path, 1, options, report, cancelled)

    backend = LocalBackend(ModelManager(load), plain)
    events = [event async for event in backend.compare(CompareRequest(WORDS, plain, packed))]
    result = events[-1]
    assert isinstance(result, Comparison)
    assert (result.reference.label, result.other.label) == ("float32", quantization)
    backend.close()
    rows = []
    for options in (plain, packed):
        loaded = load_checkpoint(tiny, options, SAMPLE)
        ids = torch.tensor([encode(loaded.tokenizer, WORDS)])
        with torch.no_grad():
            rows.append(torch.log_softmax(loaded.model(ids).logits[0, :-1].float(), dim=-1).double())
    expected = (rows[0].exp() * (rows[0] - rows[1])).sum(dim=-1)
    assert [token.divergence for token in result.tokens] == pytest.approx(expected.tolist(), rel=1e-2, abs=1e-5)
    assert result.mean_divergence > 1e-4


VOCABULARY = 49152
"""The vocabulary size of the sample model."""


def fakes(sample: LoadedModel) -> dict[LoadOptions, ReadyModel]:
    class Vocabulary(FakeEngine):
        """Has random logits with the size of the real vocabulary."""

        def __init__(self, seed: int) -> None:
            super().__init__([5, 6, 7])
            self.logits = 4 * torch.randn((40, VOCABULARY), generator=torch.Generator().manual_seed(seed))

        async def score(self, token_ids: Any, measure: Any) -> AsyncGenerator[Any]:
            logits = self.logits[: len(token_ids)]
            self.running += 1
            try:
                for start in range(0, len(token_ids), 3):
                    await asyncio.sleep(0)
                    yield measure(start, logits[start : start + 3])
            finally:
                self.running -= 1

    return {options: ReadyModel(sample, Vocabulary(seed)) for seed, options in enumerate((EXACT, ROUNDED))}


async def test_the_divergence_equals_kl_div_of_torch(sample: LoadedModel) -> None:
    models: Any = fakes(sample)
    _, result = await run_comparison(leasing(models), CompareRequest(TEXT, EXACT, ROUNDED))
    p, q = (torch.log_softmax(ready.engine.logits, dim=-1)[: len(result.tokens)] for ready in models.values())
    expected = torch.nn.functional.kl_div(q.double(), p.double(), reduction="none", log_target=True).sum(dim=-1)
    assert [token.divergence for token in result.tokens] == pytest.approx(expected.tolist(), rel=1e-9)
    assert result.mean_divergence == pytest.approx(expected.mean().item(), rel=1e-9)
    agree = (p.argmax(dim=-1) == q.argmax(dim=-1)).tolist()
    assert [token.agree for token in result.tokens] == agree
    assert result.agreement == sum(agree) / len(agree) < 1


async def test_stop_works_at_every_point(sample: LoadedModel) -> None:
    models = fakes(sample)
    total = len((await run_comparison(leasing(models), CompareRequest(TEXT, EXACT, ROUNDED)))[0]) + 1
    for stop in range(1, total):
        log: list[str] = []
        async with aclosing(compare(leasing(models, log), CompareRequest(TEXT, EXACT, ROUNDED))) as events:
            for _ in range(stop):
                await anext(events)
        assert sum(line.startswith("takes") for line in log) == sum(line.startswith("returns") for line in log)
        assert [ready.engine.stats().running for ready in models.values()] == [0, 0]


async def test_texts_that_cannot_be_compared_raise(sample: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    models = fakes(sample)
    with pytest.raises(InvalidRequestError, match="single token"):
        await run_comparison(leasing(models), CompareRequest("a", EXACT, ROUNDED))
    with pytest.raises(InvalidRequestError, match="2 to 2,048"):
        await run_comparison(leasing(models), CompareRequest("word " * 2100, EXACT, ROUNDED))
    short = {options: replace(ready, loaded=replace(sample, context_length=5)) for options, ready in models.items()}
    with pytest.raises(ContextOverflowError):
        await run_comparison(leasing(short), CompareRequest(TEXT, EXACT, ROUNDED))
    monkeypatch.setattr(comparison, "COMPARING_SHARE", 0.0)
    with pytest.raises(InvalidRequestError, match="distributions of only 0"):
        await run_comparison(leasing(models), CompareRequest(TEXT, EXACT, ROUNDED))


async def test_models_with_different_tokens_raise(sample: LoadedModel, tiny: Path) -> None:
    models = fakes(sample)
    lower = copy.deepcopy(sample.tokenizer)
    lower.backend_tokenizer.normalizer = Lowercase()
    models[ROUNDED] = replace(models[ROUNDED], loaded=replace(sample, tokenizer=lower))
    with pytest.raises(InvalidRequestError, match="different tokens"):
        await run_comparison(leasing(models), CompareRequest(TEXT, EXACT, ROUNDED))
    models[ROUNDED] = ReadyModel(load_checkpoint(tiny, ROUNDED, SAMPLE), models[ROUNDED].engine)
    with pytest.raises(InvalidRequestError, match="different tokens"):
        await run_comparison(leasing(models), CompareRequest(TEXT, EXACT, ROUNDED))


def test_labels() -> None:
    assert SETUP.label == ROUNDED.label == "bfloat16"
    assert replace(SETUP, quantization=Chosen("nf4", "")).label == "nf4"
    assert replace(ROUNDED, quantization="int8").label == "int8"


async def test_if_both_do_not_fit_the_first_model_answers_again_afterwards(sample: LoadedModel) -> None:
    here: list[LoadOptions] = []
    made = fakes(sample)

    def load(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        if here:
            raise OutOfMemoryError("It does not fit.")
        here.append(options)
        ready = made[options]
        ready.engine.close = lambda: here.remove(options)  # type: ignore[method-assign]
        return ready

    backend = LocalBackend(ModelManager(load), EXACT)
    backend.wait_until_ready()
    states: list[list[LoadOptions]] = []
    async with aclosing(backend.compare(CompareRequest(TEXT, EXACT, ROUNDED))) as events:
        async for _ in events:
            states.append(list(here))
    assert [EXACT] in states
    assert [ROUNDED] in states
    backend.wait_until_ready()
    assert here == [EXACT]
    assert backend.status().stage == "ready"


async def test_a_fixed_model_is_not_compared(sample: LoadedModel) -> None:
    backend = LocalBackend(ModelManager(lambda *_: ReadyModel(sample, FakeEngine([]))), EXACT, fixed="Two processes.")
    with pytest.raises(InvalidRequestError, match="Two processes"):
        await anext(backend.compare(CompareRequest(TEXT, EXACT, ROUNDED)))
    assert backend.status().unable_to("comparing precisions") == "Two processes."
