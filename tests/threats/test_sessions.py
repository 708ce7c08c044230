"""Tests that sessions are separate, and that the output of a model is only text."""

import asyncio
import json
import logging
import random
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from granite_demo.types.events import Finish, StreamEvent, TextDelta, Timings, ToolCalled, Usage
from granite_demo.types.messages import ToolCall
from granite_demo.types.requests import GenerationRequest
from tests.fakes import FakeBackend
from tests.threats.stranger import Stranger, public

SESSIONS = 50


class Echo(FakeBackend):
    """Repeats the question as the answer."""

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        for count, word in enumerate(request.messages[-1].content.split(), 1):
            yield TextDelta(f"{word} ", count)
            await asyncio.sleep(0.01)
        yield Finish("stop", Usage(5, 20), Timings(0.1, 0.2))


class Visitor:
    """A session with the protocol of the page."""

    def __init__(self, http: httpx.AsyncClient, stranger: Stranger, number: int) -> None:
        self.http, self.stranger = http, stranger
        self.session, self.canary = f"visitor{number}", f"canary{number:03}x"
        self.messages = ""

    async def join(self, name: str, values: list[Any]) -> None:
        body = {"data": values, "fn_index": self.stranger.event(name)["id"], "session_hash": self.session}
        (await self.http.post("/gradio_api/queue/join", json=body)).raise_for_status()

    async def ask(self, then: str = "") -> None:
        """Send a question. Trigger the event ``then`` during the answer."""
        await self.join("send", self.stranger.question(" ".join([self.canary] * 8)))
        async with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            async for line in stream.aiter_lines():
                self.messages += line
                if then and '"process_generating"' in line:
                    await self.join(then, [])
                    then = ""
                if line.startswith("data:") and json.loads(line[5:])["msg"] == "close_stream":
                    break


async def test_t18_fifty_sessions_get_only_their_own_messages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "granite_demo")
    with public(Echo()) as stranger:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=stranger.base_url, timeout=60, limits=limits) as http:
            visitors = [Visitor(http, stranger, number) for number in range(SESSIONS)]
            ways = ["", "", "stop", "leave"]
            await asyncio.gather(*(one.ask(ways[place % 4]) for place, one in enumerate(visitors)))
            # A client that uses the name of an old session gets none of its messages.
            later = Visitor(http, stranger, SESSIONS)
            later.session = visitors[0].session
            await later.ask()
    for one in (*visitors, later):
        assert one.canary in one.messages
        assert [other.canary for other in (*visitors, later) if other is not one and other.canary in one.messages] == []
    assert "canary" not in caplog.text


WRITES = frozenset({"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.remove", "os.rename", "os.mkdir"})
_watching: list[list[str]] = []


def _audit(event: str, values: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event in WRITES or (event == "open" and isinstance(values[1], str) and set(values[1]) & set("wax+")):
        _watching[-1].append(f"{event} {values[0]!r}")
    elif event == "compile" and "canary" in str(values[0]):
        _watching[-1].append(event)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Record the files that this process writes and the processes that it starts in the block."""
    if _audit not in _hooked:
        sys.addaudithook(_audit)  # it cannot be removed
        _hooked.append(_audit)
    _watching.append([])
    try:
        yield _watching[-1]
    finally:
        _watching.pop()


_hooked: list[Any] = []


def test_t19_the_output_of_the_model_has_no_effect(
    backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seed = random.randrange(10**6, 10**7)
    texts = ["```python\nopen('canary', 'w')\n```", "$(touch canary) `touch canary`", "{{ ''.__class__.__mro__ }}"]
    calls = [("calculator", {"expression": f"{seed}*{seed}"}), ("os.system", {"command": "touch canary"})]
    calls += [("eval", {"code": "open('canary', 'w')"}), ("../../app", {"path": "/etc/passwd"})]
    written = [TextDelta(text, place) for place, text in enumerate(texts, 1)]
    called = [ToolCalled(ToolCall(name, json.dumps(values))) for name, values in calls]
    backend.script = [*written, *called, Finish("tool_calls", Usage(5, 9), Timings(0.1, 0.2))]
    with public(backend) as stranger:
        stranger.ask("warm up")  # imports modules that write caches
        with watched() as done:
            messages = stranger.ask("Go on.")
            for stream in (False, True):
                body = {"messages": [{"role": "user", "content": "Go on."}], "stream": stream}
                messages += stranger.post("/v1/chat/completions", json=body).text
    assert "touch canary" in messages
    assert str(seed) in messages
    assert str(seed * seed) not in messages  # a call runs only after a press of its button
    with watched() as noticed:
        (tmp_path / "canary").write_text("written")
        (tmp_path / "canary").unlink()
    assert len(noticed) == 2
    assert done == []
    assert list(tmp_path.iterdir()) == []
