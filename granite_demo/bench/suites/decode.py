"""The suite ``decode``: tokens per second of one user and of many, compared with the documented ways and the limit."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.bench import baselines, roofline
from granite_demo.bench.measure import GREEDY, SAMPLED, Progress, Prompts, Spread, TimedRun, Way, ask, in_turns
from granite_demo.bench.options import BenchSizes
from granite_demo.engine.protocol import Engine
from granite_demo.loading.device import free_memory
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.types.sampling_params import SamplingParams

ENGINE = "granite-demo"
WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """The figures of one way with a number of users. ``rate`` is in tokens per second of all users together."""

    way: str
    users: int
    choice: str
    """``greedy`` or ``sampled``."""
    precision: str
    documented: bool
    rate: Spread
    ttft: Spread
    queued: int
    """The most requests that waited in the queue in one round."""
    limit: float | None
    """Tokens per second that the measured bandwidth allows in this precision."""
    share: float | None
    """The rate divided by the limit."""
    evenness: float | None = None
    """The speed of the slowest user divided by that of the fastest, median of the rounds. None for one user."""


@dataclass(frozen=True, slots=True)
class Decode:
    """The rows, and the bandwidth in bytes per second that gives the limits."""

    rows: tuple[DecodeRow, ...]
    bandwidth: Spread
    tokens: int
    prompt_tokens: int

    def baseline(self, users: int) -> DecodeRow | None:
        """Return the row of the fastest documented way with this number of users."""
        found = [row for row in self.rows if row.documented and row.users == users]
        return max(found, key=lambda row: row.rate.median, default=None)


@dataclass(frozen=True, slots=True)
class Case:
    """One row to measure. ``run`` takes the prompts and the number of tokens to generate for each."""

    way: str
    users: int
    choice: str
    loaded: LoadedModel
    documented: bool
    run: Callable[[Sequence[Sequence[int]], int], TimedRun]


def measure(
    ready: ReadyModel, copies: Sequence[LoadedModel], sizes: BenchSizes, progress: Progress
) -> tuple[Decode, list[str]]:
    """Measure each way with each number of users. Also returns notes on what was not measured."""
    device = ready.loaded.placement.device
    length = sizes.prompt + sizes.tokens
    kept, note = roofline.fitting_users(sizes.users, ready.loaded, length, free_memory(device))
    cases = [case for users in kept for case in cases_of(ready, copies, users)]
    prompts = Prompts(ready.loaded.vocabulary)
    speeds: list[float] = []
    turns = in_turns(
        [_way(case, prompts, sizes) for case in cases],
        sizes.rounds,
        progress,
        lambda: speeds.append(roofline.bandwidth(device)),
    )
    speed = Spread.of(speeds)
    rows = [
        row_of(case, runs, sizes, speed.median) for case, runs in zip(cases, turns.samples, strict=True) if len(runs)
    ]
    notes = [*filter(None, [note]), *turns.left_out, *waiting_notes(rows)]
    return Decode(tuple(rows), speed, sizes.tokens, sizes.prompt), notes


def cases_of(ready: ReadyModel, copies: Sequence[LoadedModel], users: int) -> list[Case]:
    """Return the documented ways on each copy, the bare loop of llama.cpp on a GGUF file, then the engine."""
    cases = [
        Case(baselines.way_for(users), users, "greedy", copy, True, partial(baselines.answer, copy)) for copy in copies
    ]
    if users == 1:
        cases += [
            Case(baselines.STATIC_WAY, 1, "greedy", copy, True, partial(baselines.static, copy))
            for copy in copies
            if copy.placement.device == "cuda"
        ]
    if ready.loaded.source.gguf:
        loop = partial(baselines.llama_answer, ready.loaded)
        cases.append(Case(baselines.LLAMA, users, "greedy", ready.loaded, False, loop))
    for choice, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
        cases.append(Case(ENGINE, users, choice, ready.loaded, False, partial(_ask, ready.engine, sampling)))
    return cases


def _ask(engine: Engine, sampling: SamplingParams, prompts: Sequence[Sequence[int]], tokens: int) -> TimedRun:
    return ask(engine, prompts, replace(sampling, max_tokens=tokens))


def _way(case: Case, prompts: Prompts, sizes: BenchSizes) -> Way[TimedRun]:
    def run(tokens: int) -> TimedRun:
        return case.run(prompts.many(case.users, sizes.prompt), tokens)

    label = f"{case.way} with {case.users} users in {case.loaded.placement.label}"
    # The steps are compiled for one length of the cache.
    warm_up = sizes.tokens if case.way == baselines.STATIC_WAY else WARM_UP_TOKENS
    return Way(label, partial(run, sizes.tokens), partial(run, warm_up), may_fail=case.way != ENGINE)


def row_of(case: Case, runs: Sequence[TimedRun], sizes: BenchSizes, speed: float) -> DecodeRow:
    """Return the row of a case from its runs and the bandwidth ``speed`` in bytes per second."""
    rate = Spread.of(run.decode_rate for run in runs)
    parts = [run.evenness for run in runs if run.evenness is not None]
    # On average, half of the answer is in the cache.
    limit = roofline.token_limit(case.loaded, case.users, sizes.prompt + sizes.tokens / 2, speed)
    return DecodeRow(
        way=case.way,
        users=case.users,
        choice=case.choice,
        precision=case.loaded.placement.label,
        documented=case.documented,
        rate=rate,
        ttft=Spread.of(run.ttft for run in runs),
        queued=max(run.queued for run in runs),
        limit=limit,
        share=rate.median / limit if limit else None,
        evenness=statistics.median(parts) if parts else None,
    )


def waiting_notes(rows: Sequence[DecodeRow]) -> list[str]:
    """Return a note for each number of users of which some waited in the queue."""
    most: dict[int, int] = {}
    for row in rows:
        most[row.users] = max(row.queued, most.get(row.users, 0))
    return [f"Of {users} users, up to {queued} waited in the queue." for users, queued in most.items() if queued]
