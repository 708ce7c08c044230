"""Sample figures and fake models for the tests of the benchmark."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import torch

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.bench.measure import Spread, TimedAnswer, TimedRun
from granite_demo.bench.report import BenchReport
from granite_demo.bench.suites.decode import Decode, DecodeRow
from granite_demo.bench.suites.load import Load
from granite_demo.bench.suites.ttft import TtftRow
from granite_demo.engine.protocol import Measure, T
from granite_demo.loading.device import Placement
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models.config import Shape
from granite_demo.outputs.structured_output import Matcher
from granite_demo.types.engine_kinds import EngineKind
from granite_demo.types.events import Queued
from granite_demo.types.logprobs import Token
from granite_demo.types.model_status import Chosen, EngineSetup, EngineStats, Fact, Feature
from granite_demo.types.sampling_params import SamplingParams
from tests.fakes import SOURCE

SHAPE = Shape(
    model_type="granite",
    context_length=1000,
    vocab_size=100,
    hidden_size=8,
    layers=2,
    attention_layers=2,
    heads=2,
    kv_heads=1,
    head_dim=4,
    intermediate_size=16,
)
KV_BYTES = 2 * 2 * 1 * 4 * 4
"""Bytes of one token: a key and a value in each of two layers, one head of four float32 numbers."""


class Model:
    """A fake model of transformers that has only a vocabulary size."""

    class config:
        vocab_size = 1000


def loaded(shape: Shape | None = SHAPE, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Return a model that reports 10,000 bytes and has no weights."""
    reasons = dict.fromkeys(("device", "dtype", "quantization", "attention"), "a test")
    placement = Placement(device, dtype, "none", "sdpa", None, reasons=reasons)
    return LoadedModel(Model, None, SOURCE, placement, 1000, frozenset(), 10_000, shape=shape)


class CountingEngine:
    """Answers each request with the numbers 1, 2, 3, … If ``queued``, it first yields Queued."""

    setup = EngineSetup(Chosen(EngineKind("counting", serial=False), "a test"))
    facts: tuple[Fact, ...] = (("Engine", "counting", "a test"),)
    unable: tuple[tuple[Feature, str], ...] = (("scoring", "It only counts."),)

    def __init__(self, queued: bool = False) -> None:
        self.queued = queued
        self.requests: list[tuple[list[int], SamplingParams]] = []
        self.running = self.most_running = 0

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, matcher: Matcher | None = None
    ) -> AsyncGenerator[Token | Queued]:
        self.requests.append((list(prompt_ids), sampling))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        if self.queued:
            yield Queued(0)
        for number in range(1, (sampling.max_tokens or 0) + 1):
            await asyncio.sleep(0.001)
            yield Token(number)
        self.running -= 1

    async def score(self, token_ids: Sequence[int], measure: Measure[T]) -> AsyncGenerator[T | Queued]:
        raise NotImplementedError
        yield

    def stats(self) -> EngineStats:
        return EngineStats(self.running, 0)

    def close(self) -> None:
        pass


def run_of(first: float, last: float, tokens: int = 11, users: int = 1) -> TimedRun:
    """Return a run of ``users`` equal answers."""
    return TimedRun((TimedAnswer(tokens, first, last),) * users)


def spread(median: float) -> Spread:
    """Return a spread of three samples around ``median``."""
    return Spread.of((median * 0.9, median, median * 1.1))


def row(way: str, users: int, rate: float, **changes: Any) -> DecodeRow:
    """Return a greedy row of ``decode`` for the engine, at a quarter of its limit."""
    values: dict[str, Any] = {
        "choice": "greedy",
        "precision": "float32",
        "documented": False,
        "rate": spread(rate),
        "ttft": spread(0.5),
        "queued": 0,
        "limit": 4 * rate,
        "share": 0.25,
        "evenness": 0.8 if users > 1 else None,
    }
    return DecodeRow(way=way, users=users, **{**values, **changes})


def report() -> BenchReport:
    """Return a report with figures of all suites except ``page``."""
    rows = []
    for users in (1, 16):
        rows.append(row("documented way", users, 10.0 * users, documented=True))
        rows.append(row("documented way", users, 20.0 * users, documented=True, precision="bfloat16"))
        rows.append(row("granite-demo", users, 30.0 * users))
        rows.append(row("granite-demo", users, 25.0 * users, choice="sampled"))
    return BenchReport(
        model={"name": "made-up", "title": "Made-up Granite", "precision": "float32"},
        device={"device": "cpu", "name": "Slow CPU", "threads": 2},
        versions={"torch": "2.0", "platform": "Linux"},
        settings={"rounds": 3, "tokens": 16, "suites": ["load", "decode", "ttft"]},
        setup=ReadyModel(loaded(), CountingEngine()).setup,
        facts=(("Engine", "counting", "a test"), ("Model", "made-up", "not shown")),
        started="2026-11-24T00:00:00+00:00",
        seconds={"load": 3.0, "decode": 61.0},
        notes=["Not measured: 64 users (at most 16 on a CPU)."],
        load=Load(
            spread(2.0), spread(0.5), 540_000_000, 10**9, 2 * 10**9, "allocated by torch", None, 8192, spread(3.0)
        ),
        decode=Decode(tuple(rows), spread(20e9), 16, 16),
        ttft=(
            TtftRow(128, spread(0.4), spread(0.1), spread(0.5), spread(0.3)),
            TtftRow(1024, spread(3.0), spread(0.2), None),
        ),
    )
