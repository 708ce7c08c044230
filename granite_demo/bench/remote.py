"""What a running server gives its users: tokens per second and time to first token, through a ``Backend`` over it."""

import asyncio
import json
import random
import time
from collections.abc import Callable
from contextlib import aclosing, closing
from dataclasses import asdict, dataclass
from pathlib import Path

from granite_demo.backend import Backend, ManagedBackend
from granite_demo.bench.measure import Answer, Run, Spread
from granite_demo.bench.options import STANDARD_OUTPUT, BenchOptions
from granite_demo.errors import ConfigurationError, EngineError
from granite_demo.types.events import Finish, Queued, ReasoningDelta, TextDelta
from granite_demo.types.messages import Message
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams

USERS = (1, 4, 16)
TOKENS = 64
WORDS = 96
"""Of each question, random so that no server has read it before: about 130 tokens."""


@dataclass(frozen=True, slots=True)
class ServedRow:
    """So many users at once. ``rate`` is tokens per second of all together; ``ttft`` the median in seconds."""

    users: int
    rate: Spread
    ttft: Spread


def run(backend: ManagedBackend, asked: BenchOptions, tell: Callable[[str], None]) -> None:
    """Measure the server behind ``backend``, print the figures or write them, and close it. Raises GraniteDemoError."""
    if asked.suites or asked.lengths or asked.plot_file:
        raise ConfigurationError("With --url, bench takes --users, --tokens, --rounds and --json only.")
    with closing(backend):
        name = backend.status().model
        rows = measure(backend, asked.users or USERS, asked.tokens or TOKENS, asked.rounds, tell)
    if asked.json_file == STANDARD_OUTPUT:
        print(as_json(name, rows))
        return
    show(name, rows)
    if asked.json_file:
        try:
            Path(asked.json_file).write_text(f"{as_json(name, rows)}\n", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"The figures cannot be written: {error}.") from error


def measure(
    backend: Backend, users: tuple[int, ...], tokens: int, rounds: int, tell: Callable[[str], None]
) -> list[ServedRow]:
    """Ask for answers of up to ``tokens`` tokens. Raises GraniteDemoError."""
    source = random.Random(time.time_ns())
    rows = []
    asyncio.run(_ask(backend, source, 1, 4))  # what the first request waits for
    for count in users:
        runs = []
        for number in range(rounds):
            tell(f"{count} users, round {number + 1} of {rounds}")
            runs.append(asyncio.run(_ask(backend, source, count, tokens)))
        rates, first = (Spread.of(getattr(run, name) for run in runs) for name in ("decode_rate", "ttft"))
        rows.append(ServedRow(count, rates, first))
    return rows


async def _ask(backend: Backend, source: random.Random, users: int, tokens: int) -> Run:
    start = time.perf_counter()

    async def answer() -> Answer:
        words = " ".join(f"{source.randrange(10**5)}" for _ in range(WORDS // 3))
        text = f"Write a long story around these numbers: {words}"
        sampling = SamplingParams(max_tokens=tokens)
        first = 0.0
        async with aclosing(backend.stream(GenerationRequest((Message("user", text),), sampling=sampling))) as events:
            async for event in events:
                if isinstance(event, TextDelta | ReasoningDelta) and event.text and not first:
                    first = time.perf_counter() - start
                elif isinstance(event, Finish) and event.reason != "stopped":
                    last = time.perf_counter() - start
                    return Answer(event.usage.completion_tokens, first or last, last)
                elif isinstance(event, Queued):
                    continue
        raise EngineError("An answer ended without its end.")

    return Run(tuple(await asyncio.gather(*(answer() for _ in range(users)))))


def as_json(name: str, rows: list[ServedRow]) -> str:
    """All figures of the server's model ``name``."""
    return json.dumps({"model": name, "rows": [asdict(row) for row in rows]}, indent=1)


def show(name: str, rows: list[ServedRow]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, title=f"{name}, from here", title_justify="left")
    for heading in ("users", "tokens/s in all", "lowest to highest", "time to first token"):
        table.add_column(heading, justify="right")
    for row in rows:
        span = f"{row.rate.low:.1f} to {row.rate.high:.1f}"
        table.add_row(str(row.users), f"{row.rate.median:.1f}", span, f"{row.ttft.median:.3f} s")
    Console(highlight=False).print(table)
