"""Visitors of the page and of the API, who take note of when they hear what."""

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

REFUSALS = (429, 503)
BUSY = "requests are waiting"
"""In the message of an engine whose line is full."""
HUGE = b"x" * (9 * 2**20)
JSON = {"content-type": "application/json", "connection": "close"}


@dataclass(slots=True)
class Heard:
    """What one visitor saw; times by the monotonic clock."""

    seed: int
    source: str
    outcome: str = "failed"
    """answered, refused, left, nonsense or failed"""
    asked: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float | None = None
    updates: int = 0
    why: str = ""


class LoadClient:
    """Uses the page and the API of one server, for any number of visitors."""

    def __init__(self, http: httpx.AsyncClient, config: dict[str, Any]) -> None:
        self.http = http
        events = config["dependencies"]
        self._send = next(event for event in events if event["api_name"] == "send")
        self._stop = next(event for event in events if event["api_name"] == "stop")
        self._shown = {component["id"]: component["props"] for component in config["components"]}

    async def page(self, heard: Heard, tokens: int, leave: bool) -> None:
        """Send a question, as the browser's Chat tab does."""
        session = f"visitor{heard.seed}"
        chosen = {"Message": "Hello", "Max new tokens": tokens, "Temperature": 1.0, "Seed": str(heard.seed)}
        inputs = [self._shown[number] for number in self._send["inputs"]]
        data = [chosen.get(props.get("label"), props.get("value")) for props in inputs]
        heard.asked = time.monotonic()
        body = {"data": data, "fn_index": self._send["id"], "session_hash": session}
        joined = await self.http.post("/gradio_api/queue/join", json=body)
        if joined.status_code in REFUSALS:
            heard.outcome = "refused"
            heard.last = time.monotonic()
            return
        joined.raise_for_status()
        async with aclosing(self._messages(session)) as lines:
            async for line in lines:
                if '"process_completed"' in line:
                    if '"success":false' in line:
                        heard.outcome, heard.why = "failed", line[:300]
                    break
                if '"process_generating"' not in line:
                    continue
                heard.updates += 1
                heard.last = time.monotonic()
                if BUSY in line:
                    heard.outcome = "refused"
                    return
                if heard.first is None and " to first token" in line:
                    heard.first = heard.last
                    heard.outcome = "answered"
                if heard.first and leave:
                    heard.outcome = "left"
                    return

    async def api(self, heard: Heard, tokens: int, leave: bool) -> None:
        """One streamed chat completion."""
        messages = [{"role": "user", "content": "Hello"}]
        body = {"messages": messages, "stream": True, "max_tokens": tokens, "seed": heard.seed}
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code in REFUSALS:
                heard.outcome, heard.last = "refused", time.monotonic()
                return
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if '"error"' in line:
                    busy = '"code":503' in line or BUSY in line
                    heard.outcome, heard.why = ("refused" if busy else "failed"), line[:300]
                    return
                if line == "data: [DONE]":
                    heard.outcome = "answered"
                if '"content":"' not in line or '"content":""' in line:
                    continue
                heard.last = time.monotonic()
                heard.updates += 1
                heard.first = heard.first or heard.last
                if leave:
                    heard.outcome = "left"
                    return

    async def stop(self, heard: Heard) -> None:
        """Press Stop on the page of ``heard``."""
        body = {"data": [], "fn_index": self._stop["id"], "session_hash": f"visitor{heard.seed}"}
        (await self.http.post("/gradio_api/queue/join", json=body)).raise_for_status()

    async def nonsense(self, heard: Heard, chance: random.Random) -> None:
        """What no page and no client would send, once. Refused with a code of its own, never by a failure."""
        path, body = chance.choice(NONSENSE)
        try:
            answer = await self.http.post(path, content=body(heard.seed), headers=JSON)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            # The server closes before all of a huge body is sent, which may reset the connection.
            heard.outcome = "nonsense" if body is _huge else "failed"
            return
        heard.outcome = "nonsense" if answer.status_code < 500 or answer.status_code in REFUSALS else "failed"
        heard.why = f"{path} {body(0)[:60]!r}: {answer.status_code}"

    async def tab(self, seed: int) -> None:
        """An open page: the connection by which Gradio knows of it, until cancelled."""
        async with self.http.stream("GET", f"/gradio_api/heartbeat/tab{seed}") as beats:
            async for _ in beats.aiter_bytes():
                pass

    async def _messages(self, session: str) -> AsyncGenerator[str]:
        params = {"session_hash": session}
        async with self.http.stream("GET", "/gradio_api/queue/data", params=params) as stream:
            async for line in stream.aiter_lines():
                yield line


def _huge(seed: int) -> bytes:
    return HUGE


def _of(value: Any) -> Callable[[int], bytes]:
    return lambda seed: json.dumps(value).encode()


NONSENSE: list[tuple[str, Callable[[int], bytes]]] = [
    *((path, lambda seed: b"{bad") for path in ("/v1/chat/completions", "/gradio_api/queue/join")),
    *((path, _huge) for path in ("/v1/completions", "/gradio_api/queue/join")),
    ("/v1/chat/completions", _of({"messages": "hello", "stream": 7})),
    ("/v1/completions", _of({"prompt": "x", "max_tokens": -1, "temperature": "hot"})),
    ("/gradio_api/queue/join", _of({"data": "text", "fn_index": 1, "session_hash": "n"})),
    *(
        (f"/gradio_api/{way}", _of({"data": [], "fn_index": 9999, "session_hash": "n"}))
        for way in ("queue/join", "run/x")
    ),
]


async def visit(
    site: LoadClient, seed: int, tokens: int, chance: random.Random, leaves: int = 5, nonsense: int = 20
) -> Heard:
    """One visitor: 1 in ``nonsense`` sends some, 1 in ``leaves`` goes in the middle; 0 is none. Never raises."""
    heard = Heard(seed, "page" if seed % 2 else "api")
    try:
        if nonsense and chance.randrange(nonsense) == 0:
            await site.nonsense(heard, chance)
            return heard
        leave = bool(leaves) and chance.randrange(leaves) == 0
        await (site.page if seed % 2 else site.api)(heard, tokens, leave)
    except Exception as error:
        heard.outcome, heard.why = "failed", f"{type(error).__name__}: {error}"[:300]
    return heard


async def opened(http: httpx.AsyncClient) -> LoadClient:
    """The ways in, as /config tells them."""
    return LoadClient(http, (await http.get("/config")).json())


async def crowd(site: LoadClient, count: int, tokens: int, first: int = 1, step: int = 1, **odd: int) -> list[Heard]:
    """``count`` visitors at once, each once; ``step`` 2 has all of them come from one source."""
    chance = random.Random(first)
    seeds = range(first, first + count * step, step)
    return list(await asyncio.gather(*(visit(site, seed, tokens, chance, **odd) for seed in seeds)))
