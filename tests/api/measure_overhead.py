"""What the API adds to a backend's own times. Run by hand: python -m tests.api.measure_overhead"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from statistics import median
from typing import Any

import httpx

from granite_demo.messages import Message
from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.types import GenerationRequest, TextDelta
from tests.fakes import FakeBackend

TOKENS, ROUNDS = 100, 8
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}


async def bare(backend: FakeBackend) -> tuple[float, float]:
    start, first = time.perf_counter(), 0.0
    async for event in backend.stream(GenerationRequest((Message("user", "Hi"),))):
        if isinstance(event, TextDelta) and not first:
            first = time.perf_counter() - start
    return first, time.perf_counter() - start


async def through(http: httpx.AsyncClient) -> tuple[float, float]:
    start, first = time.perf_counter(), 0.0
    async with http.stream("POST", "/v1/chat/completions", json=BODY) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and not first:
                first = time.perf_counter() - start
    return first, time.perf_counter() - start


async def measure(url: str, backend: FakeBackend) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as http:
        await through(http)
        for streams in (1, 10, 16):
            times = {}
            ways: dict[str, Callable[[], Coroutine[Any, Any, tuple[float, float]]]] = {
                "bare": lambda: bare(backend),
                "API": lambda: through(http),
            }
            for name, ask in ways.items():
                rounds = [await asyncio.gather(*(ask() for _ in range(streams))) for _ in range(ROUNDS)]
                first = median(first for answers in rounds for first, _ in answers)
                total = median(max(total for _, total in answers) for answers in rounds)
                times[name] = (first * 1000, streams * TOKENS / total)
            told = ", ".join(f"{name}: {first:.1f} ms, {rate:.0f} tokens/s" for name, (first, rate) in times.items())
            print(f"{streams} streams: {told}")


def main() -> None:
    backend = FakeBackend(["word "] * TOKENS, delay=0.01)
    with running(create_app(backend), backend) as url:
        asyncio.run(measure(url, backend))


if __name__ == "__main__":
    main()
