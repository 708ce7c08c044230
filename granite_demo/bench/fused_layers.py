"""The suite ``limit``: how near the engine comes to what memory and arithmetic allow, beside transformers' layers.

Both are measured in one run, one after the other: each takes most of the memory for its cache.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from rich.table import Table

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.bench import baselines, output, tables
from granite_demo.bench.measure import GREEDY, SAMPLED, Prompts, Spread, ask
from granite_demo.bench.options import BenchOptions
from granite_demo.bench.report import SCHEMA, Report, describe
from granite_demo.bench.roofline import bandwidth, step_bytes
from granite_demo.errors import ConfigurationError
from granite_demo.loading.gc import release_memory
from granite_demo.loading.load import LoadedModel
from granite_demo.models.config import linears
from granite_demo.types.load_options import LoadStage

USERS = (1, 16, 64)
PROMPT, ANSWER = 128, 256
DEEP = 30_000
DEEP_ANSWER = 128
LONG = 8192
CUBE = 8192
"""Rows, columns and products of the matrices whose product shows what arithmetic allows."""
DOCUMENTED_ANSWER = 32
Tell = Callable[[str], None]


class Opener(Protocol):
    """Makes the model ready, with its layers fused or as transformers computes them. Raises GraniteDemoError."""

    def __call__(self, report: Any, cancelled: Any, *, fuse: bool = True) -> ReadyModel: ...


@dataclass(frozen=True, slots=True)
class LimitRow:
    """One figure of each way. ``limit`` is what memory or arithmetic allow, None where neither says anything."""

    what: str
    unit: str
    fused: Spread
    plain: Spread
    documented: Spread | None
    limit: float | None


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured: bytes per second of a copy, and operations per second of a product of matrices in bfloat16."""

    memory: float
    arithmetic: float


def run(opened: Opener, asked: BenchOptions, tell: Tell) -> None:
    """Measure, then print the figures or write them. Raises ConfigurationError without a CUDA GPU."""
    import torch

    if not torch.cuda.is_available():
        raise ConfigurationError("The suite limit measures fused layers, which take a CUDA GPU. Choose another suite.")
    ceilings = Ceilings(bandwidth("cuda"), product_speed())
    found: dict[bool, dict[str, Spread]] = {}
    limits: dict[str, tuple[str, float | None]] = {}
    by_documentation: dict[str, Spread] = {}
    report: Report | None = None
    for fuse in (True, False):
        name = "fused" if fuse else "plain"
        tell(f"{name}: loading")
        clock = _Clock()
        ready = opened(clock, threading.Event(), fuse=fuse)
        clock("ready", None, "")
        if fuse:
            report = describe(ready, asked.sizes("cuda"), ("limit",), "")
            limits = _limits(ready.loaded, ceilings, asked.users or USERS)
        found[fuse] = _measure(ready, asked, lambda text, name=name: tell(f"{name}: {text}"))  # type: ignore[misc]
        found[fuse]["set-up"] = Spread.of([clock.warm_up])
        ready.engine.close()
        if not fuse:
            tell("the documented way")
            by_documentation["1 user"] = _documented(ready.loaded, asked)
        del ready
        release_memory()
    rows = [
        LimitRow(what, limits[what][0], spread, found[False][what], by_documentation.get(what), limits[what][1])
        for what, spread in found[True].items()
    ]
    assert report
    _write(report, ceilings, rows, asked)


def product_speed() -> float:
    """Operations per second, the best of a few products of ``CUBE`` cubed in bfloat16."""
    import torch

    left, right = (torch.randn(CUBE, CUBE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        left @ right
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * CUBE**3 / best


def _measure(ready: ReadyModel, asked: BenchOptions, tell: Tell) -> dict[str, Spread]:
    rounds, many = asked.rounds, asked.users or USERS
    prompts = Prompts(ready.loaded.model.config.vocab_size, seed=3)
    found: dict[str, Spread] = {}

    def keep(what: str, values: Iterable[float]) -> None:
        found[what] = Spread.of(values)
        tell(f"{what}: {found[what].median:.4g}")  # a run that is cut off has told so much

    for users in many:
        for label, sampling in (("", GREEDY), (", sampled", SAMPLED)):
            if label and users != many[-1]:
                continue
            ask(ready.engine, prompts.many(users, PROMPT), replace(sampling, max_tokens=8))
            runs = [
                ask(ready.engine, prompts.many(users, PROMPT), replace(sampling, max_tokens=ANSWER))
                for _ in range(rounds)
            ]
            keep(_name(users) + label, (run.decode_rate for run in runs))
    if _deep(ready.loaded):
        prompt = prompts.one(DEEP)
        runs = [ask(ready.engine, [prompt], replace(GREEDY, max_tokens=DEEP_ANSWER)) for _ in range(rounds + 1)]
        keep(f"1 user, depth {DEEP:,}", (run.decode_rate for run in runs[1:]))
    for length in (PROMPT, LONG):
        if length + 2 <= ready.loaded.context_length:
            runs = [ask(ready.engine, [prompts.one(length)], replace(GREEDY, max_tokens=2)) for _ in range(rounds + 1)]
            keep(f"first token, {length:,} tokens", (run.ttft for run in runs[1:]))
    return found


def _name(users: int) -> str:
    return f"{users} user{'s' if users > 1 else ''}"


def _deep(loaded: LoadedModel) -> bool:
    return loaded.context_length >= DEEP + DEEP_ANSWER


def _limits(loaded: LoadedModel, ceilings: Ceilings, many: Sequence[int]) -> dict[str, tuple[str, float | None]]:
    """(unit, limit) of each row."""

    def rate(users: int, depth: float) -> float | None:
        read = step_bytes(loaded, users, depth)
        return users * ceilings.memory / read if read else None

    limits: dict[str, tuple[str, float | None]] = {}
    for users in many:
        limits[_name(users)] = limits[f"{_name(users)}, sampled"] = ("tokens/s", rate(users, PROMPT + ANSWER / 2))
    limits[f"1 user, depth {DEEP:,}"] = ("tokens/s", rate(1, DEEP + DEEP_ANSWER / 2))
    weights = sum(linear.count * linear.size for linear in linears(loaded.shape)) if loaded.shape else 0
    for length in (PROMPT, LONG):
        least = max(2 * weights * length / ceilings.arithmetic, (step_bytes(loaded, 1, 0) or 0) / ceilings.memory)
        limits[f"first token, {length:,} tokens"] = ("s", least or None)
    limits["set-up"] = ("s", None)
    return limits


def _documented(loaded: LoadedModel, asked: BenchOptions) -> Spread:
    from transformers import GenerationConfig

    loaded.model.generation_config = GenerationConfig()
    prompts = Prompts(loaded.model.config.vocab_size, seed=4)
    baselines.generate(loaded, prompts.one(PROMPT), 8)
    runs = [baselines.generate(loaded, prompts.one(PROMPT), DOCUMENTED_ANSWER) for _ in range(min(3, asked.rounds))]
    return Spread.of(run.decode_rate for run in runs)


class _Clock:
    """Notes how long the warm-up of the engine took."""

    def __init__(self) -> None:
        self.warm_up = 0.0
        self._begun = 0.0

    def __call__(self, stage: LoadStage, fraction: float | None, detail: str) -> None:
        if stage == "warming up" and not self._begun:
            self._begun = time.perf_counter()
        if stage == "ready":
            self.warm_up = time.perf_counter() - self._begun


def _write(report: Report, ceilings: Ceilings, rows: Sequence[LimitRow], asked: BenchOptions) -> None:
    head = {"model": report.model, "device": report.device, "versions": report.versions, "facts": report.facts}
    body = {"schema": SCHEMA, **head, "ceilings": asdict(ceilings), "rows": [asdict(row) for row in rows]}
    output.deliver(json.dumps(body, indent=2), lambda: _show(report, ceilings, rows), asked)


def _show(report: Report, ceilings: Ceilings, rows: Sequence[LimitRow]) -> None:
    console = tables.wide_console()
    line = (
        f"{report.model['title']} in {report.model['precision']} on {report.device['name']}: a copy moves "
        f"{ceilings.memory / 1e12:.2f} TB/s, a product of matrices {ceilings.arithmetic / 1e12:.0f} TFLOP/s"
    )
    console.print(line, highlight=False, markup=False)
    console.print(table_of(rows))
    engine = report.setup.engine
    tables.show_choices(console, ("Engine", engine.kind), ("Layers", engine.fused))


def table_of(rows: Sequence[LimitRow]) -> Table:
    """Each figure beside transformers' layers in the same engine, the documented way, and the limit."""
    title = "Near the limit; medians, in brackets the lowest and the highest"
    columns = ("what", "unit", "fused", "transformers' layers", "documented", "limit", "of limit")
    table = tables.report_table(title, *columns, left=("what", "unit"))
    for row in rows:
        digits = 1 if row.unit == "tokens/s" or row.limit is None else 4
        share = tables.MISSING
        if row.limit:
            share = f"{row.fused.median / row.limit if row.unit == 'tokens/s' else row.limit / row.fused.median:.0%}"
        table.add_row(
            row.what, row.unit, tables.spread(row.fused, digits), tables.spread(row.plain, digits),
            tables.spread(row.documented, digits) if row.documented else tables.MISSING,
            f"{row.limit:,.{digits}f}" if row.limit else tables.MISSING, share,
        )  # fmt: skip
    return table
