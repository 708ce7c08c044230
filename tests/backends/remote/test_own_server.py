"""Tests for the backend and the commands with real servers in other processes and the sample model."""

import asyncio
import importlib.util
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from granite_demo.backends.remote.backend import RemoteBackend
from granite_demo.backends.remote.endpoints import Endpoints, parse_urls
from granite_demo.errors import RemoteError
from granite_demo.types.constraints import Constraint
from granite_demo.types.events import Finish, StreamEvent, TextDelta, TokenScored
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.messages import Message
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams

pytestmark = pytest.mark.release

ROOT = Path(__file__).parents[3]
ASKED = GenerationRequest((Message("user", "What is the capital of Germany?"),), sampling=SamplingParams(max_tokens=24))
LONG = GenerationRequest((Message("user", "Tell me a long story."),), sampling=SamplingParams(max_tokens=400))
PATIENCE = 90.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def process(*command: str) -> Iterator["subprocess.Popen[bytes]"]:
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def own(port: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "granite_demo", "serve", "--port", str(port), "--model", "sample")


def transformers_serve(folder: Path, port: int) -> tuple[str, ...]:
    serve = Path(sys.executable).with_name("transformers")
    return (str(serve), "serve", str(folder), "--port", str(port), "--device", "cpu")


@pytest.fixture
def backend() -> Iterator[tuple[RemoteBackend, int]]:
    port = free_port()
    backend = RemoteBackend(Endpoints(parse_urls(f"http://127.0.0.1:{port}")))
    backend.start()
    yield backend, port
    backend.close()


def wait_for(backend: RemoteBackend, stage: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while backend.status().stage != stage:
        assert time.monotonic() < deadline, backend.status()
        time.sleep(0.1)


async def events_of(backend: RemoteBackend, request: GenerationRequest) -> list[StreamEvent]:
    async with aclosing(backend.stream(request)) as events:
        return [event async for event in events]


def text_of(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def ask_and_kill(backend: RemoteBackend, server: "subprocess.Popen[bytes]") -> None:
    """Send a request, and kill the server after the first tokens."""
    async with aclosing(backend.stream(LONG)) as events:
        async for event in events:
            if isinstance(event, TextDelta) and event.completion_tokens > 2:
                server.send_signal(signal.SIGKILL)


def test_with_granite_demo_as_the_server(gguf_path: Path, backend: tuple[RemoteBackend, int]) -> None:
    remote, port = backend
    with process(*own(port)) as server:
        wait_for(remote, "ready")
        assert ("Device", f"granite-demo at http://127.0.0.1:{port}") in [fact[:2] for fact in remote.status().facts]
        events = asyncio.run(events_of(remote, ASKED))
        finish = events[-1]
        assert isinstance(finish, Finish)
        assert "Berlin" in text_of(events)
        assert finish.usage.prompt_tokens > 5
        scored = GenerationRequest(prompt="Once upon a", sampling=SamplingParams(max_tokens=3, logprobs=2))
        assert sum(isinstance(event, TokenScored) for event in asyncio.run(events_of(remote, scored))) == 3
        chosen = replace(ASKED, sampling=SamplingParams(constraint=Constraint("choice", choices=("Rome", "Oslo"))))
        assert text_of(asyncio.run(events_of(remote, chosen))) in ("Rome", "Oslo")
        command = [sys.executable, "-m", "granite_demo", "complete", "What is the capital of Germany?"]
        command += ["--max-tokens", "24", "--url", f"http://127.0.0.1:{port}"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert (run.returncode, run.stdout) == (0, text_of(events)), run.stderr
        with pytest.raises(RemoteError, match="cut off"):
            asyncio.run(ask_and_kill(remote, server))
    wait_for(remote, "failed")
    with process(*own(port)):
        wait_for(remote, "ready")
        assert "Berlin" in text_of(asyncio.run(events_of(remote, ASKED)))


def test_with_transformers_serve_as_the_server(sample_path: Path, backend: tuple[RemoteBackend, int]) -> None:
    if importlib.util.find_spec("fastapi") is None:
        pytest.skip("transformers serve needs its extras")
    remote, port = backend
    with process(*transformers_serve(sample_path, port)):
        remote.select(LoadOptions(str(sample_path)))
        wait_for(remote, "ready")
        events = asyncio.run(events_of(remote, ASKED))
        command = [sys.executable, "-m", "granite_demo", "complete", "What is the capital of Germany?"]
        command += ["--max-tokens", "24", "--url", f"http://127.0.0.1:{port}", "--model", str(sample_path)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, text_of(events)), run.stderr
    assert "Berlin" in text_of(events)
