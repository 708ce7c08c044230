"""The suite ``page``: the cost of the page and the API over the engine alone, and the time from start to first answer.

Only this suite needs the packages of the server.
"""

import asyncio
import itertools
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

import httpx

from granite_demo.backends.local import LocalBackend
from granite_demo.backends.model_manager import ReadyModel
from granite_demo.bench import baselines
from granite_demo.bench.measure import GREEDY, Progress, Spread, TimedAnswer, TimedRun, Way, ask, in_turns
from granite_demo.bench.options import BenchSizes
from granite_demo.bench.suites import visitors
from granite_demo.errors import EngineError
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.prompts.render import render_chat
from granite_demo.types.events import Finish, TextDelta
from granite_demo.types.messages import Message
from granite_demo.types.requests import GenerationRequest

STORY = "Story {}: write a long story about a ship and its crew."
"""The number makes each question different, so that the prefix cache cannot help."""
MOST_VISITORS = 64
PAGE_WARM_UP_TOKENS = 8
ENGINE_WAY, BACKEND_WAY = "granite-demo, engine", "granite-demo, engine and backend"
PAGE_WAY, API_WAY = "granite-demo, page", "granite-demo, API"


@dataclass(frozen=True, slots=True)
class PageRow:
    """The figures of one way with a number of visitors. ``rate`` is that of all together, as in ``decode``."""

    way: str
    visitors: int
    rate: Spread
    ttft: Spread
    together: Spread | None
    """Tokens per second while all visitors get tokens. None if there is no such time."""
    cost: float | None
    """For the page and the API: 1 - ``together`` / ``together`` of the engine alone."""


@dataclass(frozen=True, slots=True)
class Startup:
    """Seconds from the start of a new process."""

    page: float
    """Until the page answers."""
    ready: float
    """Until the model is ready."""
    first_token: float
    """Until a client of the page gets the first token of a chat that it starts as soon as the page answers."""


def compare(
    backend: LocalBackend, ready: ReadyModel, copies: Sequence[LoadedModel], sizes: BenchSizes, progress: Progress
) -> tuple[tuple[PageRow, ...], list[str]]:
    """Measure greedy answers in each way, for one visitor and for many at once. Closes ``backend``.

    Also returns notes on what was not measured.
    """
    from granite_demo.server.app import create_app
    from granite_demo.server.run import running

    counts = sorted({1, *(users for users in sizes.users if users <= MOST_VISITORS)})
    with running(create_app(backend), backend) as url, visitors.crowd(url) as visit:
        questions = map(STORY.format, itertools.count(1))
        kinds: list[tuple[str, int]] = []
        ways: list[Way[TimedRun]] = []

        def add(
            kind: str, count: int, run: Callable[[list[str]], TimedRun], may_fail: bool = False, api: bool | None = None
        ) -> None:
            def warm_up() -> None:
                if api is not None:
                    visit(PAGE_WARM_UP_TOKENS, list(itertools.islice(questions, count)), api)

            kinds.append((kind, count))
            label = f"{kind} with {count} visitors"
            ways.append(Way(label, lambda: run(list(itertools.islice(questions, count))), warm_up, may_fail))

        for copy in baselines.like(ready.loaded, copies):
            add(baselines.GENERATE, 1, partial(_documented, copy, sizes.tokens), may_fail=True)
        add(BACKEND_WAY, 1, partial(_backend, backend, sizes.tokens))
        for count in counts:
            add(ENGINE_WAY, count, partial(_engine, ready, sizes.tokens))
            add(PAGE_WAY, count, lambda questions: visit(sizes.tokens, questions, False), api=False)
            add(API_WAY, count, lambda questions: visit(sizes.tokens, questions, True), api=True)
        turns = in_turns(ways, sizes.rounds, progress)
    return rows_of(kinds, turns.samples), turns.left_out


def rows_of(kinds: Sequence[tuple[str, int]], samples: Sequence[Sequence[TimedRun]]) -> tuple[PageRow, ...]:
    """Return a row for each (way, visitors) that was measured, in the order of the number of visitors."""
    measured = {kind: runs for kind, runs in zip(kinds, samples, strict=True) if runs}
    together = {kind: _together(runs) for kind, runs in measured.items()}
    rows = []
    for (way, count), runs in measured.items():
        bare, own = together.get((ENGINE_WAY, count)), together[way, count]
        cost = 1 - own.median / bare.median if way in (PAGE_WAY, API_WAY) and bare and own else None
        rate, first = Spread.of(run.decode_rate for run in runs), Spread.of(run.ttft for run in runs)
        rows.append(PageRow(way, count, rate, first, own, cost))
    return tuple(sorted(rows, key=lambda row: row.visitors))


def _together(runs: Sequence[TimedRun]) -> Spread | None:
    rates = [rate for run in runs if (rate := run.together)]
    return Spread.of(rates) if rates else None


def _prompt(loaded: LoadedModel, question: str) -> list[int]:
    return render_chat(loaded.tokenizer, GenerationRequest((Message("user", question),)))


def _documented(copy: LoadedModel, tokens: int, questions: list[str]) -> TimedRun:
    return baselines.generate(copy, _prompt(copy, questions[0]), tokens)


def _engine(ready: ReadyModel, tokens: int, questions: list[str]) -> TimedRun:
    prompts = [_prompt(ready.loaded, question) for question in questions]
    return ask(ready.engine, prompts, replace(GREEDY, max_tokens=tokens))


def _backend(backend: LocalBackend, tokens: int, questions: list[str]) -> TimedRun:
    messages = (Message("user", questions[0]),)
    return asyncio.run(_stream(backend, GenerationRequest(messages, sampling=replace(GREEDY, max_tokens=tokens))))


async def _stream(backend: LocalBackend, request: GenerationRequest) -> TimedRun:
    start = time.perf_counter()
    first = 0.0
    async with aclosing(backend.stream(request)) as events:
        async for event in events:
            if isinstance(event, TextDelta) and not first:
                first = time.perf_counter() - start
            if isinstance(event, Finish) and event.reason != "stopped":
                return TimedRun((TimedAnswer(event.usage.completion_tokens, first, time.perf_counter() - start),))
    raise EngineError("The stream ended without a finish event.")


def measure_startup(arguments: Sequence[str]) -> Startup:
    """Start ``granite-demo serve`` with ``arguments`` in a new process and ask one question through the page.

    Raises EngineError if the server does not start.
    """
    start = time.perf_counter()
    command = [sys.executable, "-m", "granite_demo", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = _address(process.stderr or ())
            page = time.perf_counter() - start
            threading.Thread(target=_drain, args=(process.stderr or (),), daemon=True).start()
            asked = time.perf_counter()
            with ThreadPoolExecutor(1) as visitor:
                answered = visitor.submit(lambda: asyncio.run(visitors.ask_page(url, 8, [STORY.format(1)])))
                while httpx.get(f"{url}/health").json()["model"] != "ready":
                    time.sleep(0.05)
                ready = time.perf_counter() - start
                [answer] = answered.result().answers
            return Startup(page, ready, asked - start + answer.first)
        finally:
            process.terminate()


def _address(log: Iterable[str]) -> str:
    lines = []
    for line in log:
        lines.append(line)
        if found := re.search(r"http://\S+:\d+", line):
            return found[0]
    raise EngineError(f"The server did not start: {''.join(lines[-3:])}")


def _drain(log: Iterable[str]) -> None:
    for _ in log:
        pass
