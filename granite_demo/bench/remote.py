"""Measures a running server through its ``Backend``: tokens per second and time to first token of its users."""

import asyncio
import json
import random
import time
from contextlib import aclosing, closing
from dataclasses import asdict, dataclass
from pathlib import Path

from granite_demo.backend import Backend, ManagedBackend
from granite_demo.bench.measure import Progress, Spread, TimedAnswer, TimedRun
from granite_demo.bench.options import STANDARD_OUTPUT, BenchOptions
from granite_demo.errors import ConfigurationError, EngineError
from granite_demo.types.events import Finish, Queued, ReasoningDelta, TextDelta
from granite_demo.types.messages import Message
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams

SERVED_USERS = (1, 4, 16)
SERVED_TOKENS = 64
PROMPT_WORDS = 96
"""Random words in each question, about 130 tokens, so that no server has the question in its prefix cache."""


@dataclass(frozen=True, slots=True)
class ServedRow:
    """The figures of ``users`` users at once: tokens per second of all together, and the median TTFT in seconds."""

    users: int
    rate: Spread
    ttft: Spread


def run(backend: ManagedBackend, options: BenchOptions, progress: Progress) -> None:
    """Measure the server of ``backend``, print or write the figures, and close ``backend``. Raises GraniteDemoError."""
    if options.suites or options.lengths or options.plot_file:
        raise ConfigurationError("With --url, bench accepts only --users, --tokens, --rounds and --json.")
    with closing(backend):
        name = backend.status().model
        rows = measure(
            backend, options.users or SERVED_USERS, options.tokens or SERVED_TOKENS, options.rounds, progress
        )
    if options.json_file == STANDARD_OUTPUT:
        print(as_json(name, rows))
        return
    show(name, rows)
    if options.json_file:
        try:
            Path(options.json_file).write_text(f"{as_json(name, rows)}\n", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"The figures cannot be written: {error}.") from error


def measure(backend: Backend, users: tuple[int, ...], tokens: int, rounds: int, progress: Progress) -> list[ServedRow]:
    """Measure answers of up to ``tokens`` tokens for each number of users. Raises GraniteDemoError."""
    source = random.Random(time.time_ns())
    rows = []
    asyncio.run(_ask(backend, source, 1, 4))  # a warm-up: the first request can be slower
    for count in users:
        runs = []
        for number in range(rounds):
            progress(f"{count} users, round {number + 1} of {rounds}")
            runs.append(asyncio.run(_ask(backend, source, count, tokens)))
        rates, first = (Spread.of(getattr(run, name) for run in runs) for name in ("decode_rate", "ttft"))
        rows.append(ServedRow(count, rates, first))
    return rows


async def _ask(backend: Backend, source: random.Random, users: int, tokens: int) -> TimedRun:
    start = time.perf_counter()

    async def answer() -> TimedAnswer:
        words = " ".join(f"{source.randrange(10**5)}" for _ in range(PROMPT_WORDS // 3))
        text = f"Write a long story around these numbers: {words}"
        sampling = SamplingParams(max_tokens=tokens)
        first = 0.0
        async with aclosing(backend.stream(GenerationRequest((Message("user", text),), sampling=sampling))) as events:
            async for event in events:
                if isinstance(event, TextDelta | ReasoningDelta) and event.text and not first:
                    first = time.perf_counter() - start
                elif isinstance(event, Finish) and event.reason != "stopped":
                    last = time.perf_counter() - start
                    return TimedAnswer(event.usage.completion_tokens, first or last, last)
                elif isinstance(event, Queued):
                    continue
        raise EngineError("An answer ended without a finish event.")

    return TimedRun(tuple(await asyncio.gather(*(answer() for _ in range(users)))))


def as_json(name: str, rows: list[ServedRow]) -> str:
    """Return all figures with the name of the model."""
    return json.dumps({"model": name, "rows": [asdict(row) for row in rows]}, indent=1)


def show(name: str, rows: list[ServedRow]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, title=f"{name}, measured from this machine", title_justify="left")
    for heading in ("users", "tokens/s of all", "lowest to highest", "time to first token"):
        table.add_column(heading, justify="right")
    for row in rows:
        span = f"{row.rate.low:.1f} to {row.rate.high:.1f}"
        table.add_row(str(row.users), f"{row.rate.median:.1f}", span, f"{row.ttft.median:.3f} s")
    Console(highlight=False).print(table)
