"""Measures this machine: the engine and the page against ``generate`` with ``TextIteratorStreamer``, and the start.

Every figure comes from one run, in turns, since only figures of one run can be compared.
"""

import asyncio
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx

from granite_demo.backends import LocalBackend
from granite_demo.errors import EngineError
from granite_demo.manager import ReadyModel
from granite_demo.types import Finish, GenerationRequest, Message, SamplingParams, TextDelta

QUESTION = "Write a long story about a ship and its crew."


@dataclass(frozen=True, slots=True)
class Measurement:
    """One way of answering: medians over the rounds."""

    name: str
    tokens_per_second: float
    """All tokens over all the time, the prefill included."""
    ttft: float
    """Seconds to the first token, or for ``generate`` to the first text."""


@dataclass(frozen=True, slots=True)
class Startup:
    """Seconds from the start of a new process."""

    page: float
    """The page answers."""
    ready: float
    """The model is ready."""
    first_token: float
    """The first token of a chat has reached a client of the page, asked as soon as the page answered."""


def compare(backend: LocalBackend, ready: ReadyModel, tokens: int, rounds: int) -> list[Measurement]:
    """Answer one question in each way, ``rounds`` times in turns, greedily with ``tokens`` new tokens."""
    request = GenerationRequest((Message("user", QUESTION),), sampling=SamplingParams(max_tokens=tokens))
    from granite_demo.server.app import create_app
    from granite_demo.server.run import running

    with running(create_app(backend), backend) as url:
        page = _page_client(url)
        ways: dict[str, Callable[[], tuple[int, float, float]]] = {
            "generate + TextIteratorStreamer": lambda: _reference(ready.loaded, request),
            "granite-demo, engine and backend": lambda: asyncio.run(_backend(backend, request)),
            "granite-demo, through the page": lambda: _page(page, tokens),
        }
        samples: dict[str, list[tuple[int, float, float]]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                samples[name].append(way())
        page.close()
    return [
        Measurement(
            name,
            statistics.median(count / seconds for count, _, seconds in runs),
            statistics.median(first for _, first, _ in runs),
        )
        for name, runs in samples.items()
    ]


def measure_startup(arguments: list[str]) -> Startup:
    """Start ``granite-demo serve`` with ``arguments`` in a new process and ask it one question through the page."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "granite_demo", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = _address(process)
        page = time.perf_counter() - start
        threading.Thread(target=_drain, args=(process,), daemon=True).start()
        client = _page_client(url)
        asked = time.perf_counter()
        job = _ask(client, 8)
        while httpx.get(f"{url}/health").json()["model"] != "ready":
            time.sleep(0.05)
        ready = time.perf_counter() - start
        _, first, _ = _follow(job, asked)
        client.close()
        return Startup(page, ready, asked - start + first)
    finally:
        process.terminate()
        process.wait()


def _reference(loaded: Any, request: GenerationRequest) -> tuple[int, float, float]:
    """(tokens, seconds to the first text, seconds) of the way that the transformers documentation shows."""
    from transformers import TextIteratorStreamer

    start = time.perf_counter()
    chat = [{"role": message.role, "content": message.content} for message in request.messages]
    inputs = loaded.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(loaded.model.device)
    streamer = TextIteratorStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
    result: list[Any] = []

    def generate() -> None:
        result.append(
            loaded.model.generate(
                **inputs, streamer=streamer, max_new_tokens=request.sampling.max_tokens, do_sample=False
            )
        )

    thread = threading.Thread(target=generate)
    thread.start()
    first = 0.0
    for text in streamer:
        if text and not first:
            first = time.perf_counter() - start
    thread.join()
    return result[0].shape[1] - inputs["input_ids"].shape[1], first, time.perf_counter() - start


async def _backend(backend: LocalBackend, request: GenerationRequest) -> tuple[int, float, float]:
    start = time.perf_counter()
    first = 0.0
    async with aclosing(backend.stream(request)) as events:
        async for event in events:
            if isinstance(event, TextDelta) and not first:
                first = time.perf_counter() - start
            if isinstance(event, Finish):
                return event.usage.completion_tokens, first, time.perf_counter() - start
    raise EngineError("The stream ended without a finish.")


def _page_client(url: str) -> Any:
    from gradio_client import Client

    return Client(url, verbose=False)


def _page(client: Any, tokens: int) -> tuple[int, float, float]:
    return _follow(_ask(client, tokens), time.perf_counter())


def _ask(client: Any, tokens: int) -> Any:
    """One chat through the page's own protocol, as a browser does it."""
    history = [{"role": "user", "content": [{"type": "text", "text": QUESTION}], "metadata": None, "options": None}]
    respond = next(event["id"] for event in client.config["dependencies"] if event["api_name"] == "respond")
    return client.submit(history, "", 0.0, 1.0, 0, 1.0, tokens, None, "", fn_index=respond)


def _follow(job: Any, start: float) -> tuple[int, float, float]:
    first = 0.0
    note = ""
    for update in job:
        note = update[0][-1]["content"][-1]["text"]
        if not first and " to first token" in note:
            first = time.perf_counter() - start
    found = re.search(r"([\d,]+) tokens? ·", note)
    if not found:
        raise EngineError(f"The page did not answer: {note}")
    return int(found[1].replace(",", "")), first, time.perf_counter() - start


def _address(process: subprocess.Popen[str]) -> str:
    lines = []
    for line in process.stderr or ():
        lines.append(line)
        if found := re.search(r"http://\S+:\d+", line):
            return found[0]
    raise EngineError(f"The server did not start: {''.join(lines[-3:])}")


def _drain(process: subprocess.Popen[str]) -> None:
    for _ in process.stderr or ():
        pass
