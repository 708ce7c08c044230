"""The suite ``limit``: compares the fused layers with the layers of transformers and with the limit of the hardware.

Both are measured in one run, one after the other, because the cache of each takes most of the memory.
"""

import json
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from rich.table import Table

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.bench import baselines, output, tables
from granite_demo.bench.measure import GREEDY, SAMPLED, Progress, Prompts, Spread, ask
from granite_demo.bench.options import BenchOptions
from granite_demo.bench.report import SCHEMA_VERSION, BenchReport, describe
from granite_demo.bench.roofline import bandwidth, step_bytes
from granite_demo.errors import ConfigurationError
from granite_demo.loading.gc import release_memory
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models.config import linears
from granite_demo.types.load_options import LoadStage

USER_COUNTS = (1, 16, 64)
SHORT_PROMPT, SHORT_ANSWER = 128, 256
DEEP = 30_000
DEEP_ANSWER = 128
LONG_PROMPT = 8192
CUBE = 8192
"""The size of the square matrices whose product measures the arithmetic limit."""
DOCUMENTED_ANSWER = 32


class FuseOpener(Protocol):
    """Makes the model ready, with fused layers or with the layers of transformers. Raises GraniteDemoError."""

    def __call__(self, report: Any, cancelled: Any, *, fuse: bool = True) -> ReadyModel: ...


@dataclass(frozen=True, slots=True)
class LimitRow:
    """One figure, measured in each way. ``limit`` is what memory or arithmetic allows; None: no limit is known."""

    what: str
    unit: str
    fused: Spread
    plain: Spread
    documented: Spread | None
    limit: float | None


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured limits: bytes per second of a copy, and operations per second of a bfloat16 matrix product."""

    memory: float
    arithmetic: float


def run(opener: FuseOpener, options: BenchOptions, progress: Progress) -> None:
    """Measure, then print the figures or write them. Raises ConfigurationError if there is no CUDA GPU."""
    import torch

    if not torch.cuda.is_available():
        raise ConfigurationError("The suite limit measures fused layers, which need a CUDA GPU. Choose another suite.")
    ceilings = Ceilings(bandwidth("cuda"), product_speed())
    found: dict[bool, dict[str, Spread]] = {}
    limits: dict[str, tuple[str, float | None]] = {}
    by_documentation: dict[str, Spread] = {}
    report: BenchReport | None = None
    for fuse in (True, False):
        name = "fused" if fuse else "plain"
        progress(f"{name}: loading")
        clock = _Clock()
        ready = opener(clock, threading.Event(), fuse=fuse)
        clock("ready", None, "")
        if fuse:
            report = describe(ready, options.sizes("cuda"), ("limit",), "")
            limits = _limits(ready.loaded, ceilings, options.users or USER_COUNTS)
        found[fuse] = _measure(ready, options, lambda text, name=name: progress(f"{name}: {text}"))  # type: ignore[misc]
        found[fuse]["set-up"] = Spread.of([clock.warm_up])
        ready.engine.close()
        if not fuse:
            progress("the documented way")
            by_documentation["1 user"] = _documented(ready.loaded, options)
        del ready
        release_memory()
    rows = [
        LimitRow(what, limits[what][0], spread, found[False][what], by_documentation.get(what), limits[what][1])
        for what, spread in found[True].items()
    ]
    assert report
    _write(report, ceilings, rows, options)


def product_speed() -> float:
    """Return operations per second: the best of six bfloat16 products of square matrices of the size ``CUBE``."""
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


def _measure(ready: ReadyModel, options: BenchOptions, progress: Progress) -> dict[str, Spread]:
    rounds, many = options.rounds, options.users or USER_COUNTS
    prompts = Prompts(ready.loaded.vocabulary, seed=3)
    found: dict[str, Spread] = {}

    def keep(what: str, values: Iterable[float]) -> None:
        found[what] = Spread.of(values)
        progress(f"{what}: {found[what].median:.4g}")  # shown even if the run is interrupted later

    for users in many:
        for label, sampling in (("", GREEDY), (", sampled", SAMPLED)):
            if label and users != many[-1]:
                continue
            ask(ready.engine, prompts.many(users, SHORT_PROMPT), replace(sampling, max_tokens=8))
            runs = [
                ask(ready.engine, prompts.many(users, SHORT_PROMPT), replace(sampling, max_tokens=SHORT_ANSWER))
                for _ in range(rounds)
            ]
            keep(_name(users) + label, (run.decode_rate for run in runs))
    if _deep(ready.loaded):
        prompt = prompts.one(DEEP)
        runs = [ask(ready.engine, [prompt], replace(GREEDY, max_tokens=DEEP_ANSWER)) for _ in range(rounds + 1)]
        keep(f"1 user, depth {DEEP:,}", (run.decode_rate for run in runs[1:]))
    for length in (SHORT_PROMPT, LONG_PROMPT):
        if length + 2 <= ready.loaded.context_length:
            runs = [ask(ready.engine, [prompts.one(length)], replace(GREEDY, max_tokens=2)) for _ in range(rounds + 1)]
            keep(f"first token, {length:,} tokens", (run.ttft for run in runs[1:]))
    return found


def _name(users: int) -> str:
    return f"{users} user{'s' if users > 1 else ''}"


def _deep(loaded: LoadedModel) -> bool:
    return loaded.context_length >= DEEP + DEEP_ANSWER


def _limits(loaded: LoadedModel, ceilings: Ceilings, many: Sequence[int]) -> dict[str, tuple[str, float | None]]:
    """Return (unit, limit) of each row."""

    def rate(users: int, depth: float) -> float | None:
        read = step_bytes(loaded, users, depth)
        return users * ceilings.memory / read if read else None

    limits: dict[str, tuple[str, float | None]] = {}
    for users in many:
        limits[_name(users)] = limits[f"{_name(users)}, sampled"] = (
            "tokens/s",
            rate(users, SHORT_PROMPT + SHORT_ANSWER / 2),
        )
    limits[f"1 user, depth {DEEP:,}"] = ("tokens/s", rate(1, DEEP + DEEP_ANSWER / 2))
    weights = sum(linear.count * linear.size for linear in linears(loaded.shape)) if loaded.shape else 0
    for length in (SHORT_PROMPT, LONG_PROMPT):
        least = max(2 * weights * length / ceilings.arithmetic, (step_bytes(loaded, 1, 0) or 0) / ceilings.memory)
        limits[f"first token, {length:,} tokens"] = ("s", least or None)
    limits["set-up"] = ("s", None)
    return limits


def _documented(loaded: LoadedModel, options: BenchOptions) -> Spread:
    from transformers import GenerationConfig

    loaded.model.generation_config = GenerationConfig()
    prompts = Prompts(loaded.vocabulary, seed=4)
    baselines.generate(loaded, prompts.one(SHORT_PROMPT), 8)
    runs = [
        baselines.generate(loaded, prompts.one(SHORT_PROMPT), DOCUMENTED_ANSWER) for _ in range(min(3, options.rounds))
    ]
    return Spread.of(run.decode_rate for run in runs)


class _Clock:
    """Measures the warm-up of the engine, in seconds."""

    def __init__(self) -> None:
        self.warm_up = 0.0
        self._begun = 0.0

    def __call__(self, stage: LoadStage, fraction: float | None, detail: str) -> None:
        if stage == "warming up" and not self._begun:
            self._begun = time.perf_counter()
        if stage == "ready":
            self.warm_up = time.perf_counter() - self._begun


def _write(report: BenchReport, ceilings: Ceilings, rows: Sequence[LimitRow], options: BenchOptions) -> None:
    head = {"model": report.model, "device": report.device, "versions": report.versions, "facts": report.facts}
    body = {"schema": SCHEMA_VERSION, **head, "ceilings": asdict(ceilings), "rows": [asdict(row) for row in rows]}
    output.deliver(json.dumps(body, indent=2), lambda: _show(report, ceilings, rows), options)


def _show(report: BenchReport, ceilings: Ceilings, rows: Sequence[LimitRow]) -> None:
    console = tables.wide_console()
    line = (
        f"{report.model['title']} in {report.model['precision']} on {report.device['name']}: a copy moves "
        f"{ceilings.memory / 1e12:.2f} TB/s, a matrix product does {ceilings.arithmetic / 1e12:.0f} TFLOP/s"
    )
    console.print(line, highlight=False, markup=False)
    console.print(table_of(rows))
    engine = report.setup.engine
    tables.show_choices(console, ("Engine", engine.kind), ("Layers", engine.fused))


def table_of(rows: Sequence[LimitRow]) -> Table:
    """Compare each figure with the layers of transformers in the same engine, the documented way, and the limit."""
    title = "Compared with the limit; medians, in brackets the lowest and the highest"
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
