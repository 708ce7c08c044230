"""Visitors of the page and of the API that record their outcomes and times."""

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
"""A part of the error text if the queue of the engine is full."""
HUGE = b"x" * (9 * 2**20)
JSON = {"content-type": "application/json", "connection": "close"}


@dataclass(slots=True)
class VisitRecord:
    """The record of one visit. Times are of the monotonic clock."""

    seed: int
    source: str
    outcome: str = "failed"
    """``answered``, ``refused``, ``left``, ``nonsense`` or ``failed``."""
    asked: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float | None = None
    updates: int = 0
    why: str = ""


class LoadClient:
    """A client for the page and the API of one server, for any number of visitors."""

    def __init__(self, http: httpx.AsyncClient, config: dict[str, Any]) -> None:
        self.http = http
        events = config["dependencies"]
        self._send = next(event for event in events if event["api_name"] == "send")
        self._stop = next(event for event in events if event["api_name"] == "stop")
        self._shown = {component["id"]: component["props"] for component in config["components"]}

    async def page(self, record: VisitRecord, tokens: int, leave: bool) -> None:
        """Send a question, as the Chat tab in a browser does."""
        session = f"visitor{record.seed}"
        chosen = {"Message": "Hello", "Max new tokens": tokens, "Temperature": 1.0, "Seed": str(record.seed)}
        inputs = [self._shown[number] for number in self._send["inputs"]]
        data = [chosen.get(props.get("label"), props.get("value")) for props in inputs]
        record.asked = time.monotonic()
        body = {"data": data, "fn_index": self._send["id"], "session_hash": session}
        joined = await self.http.post("/gradio_api/queue/join", json=body)
        if joined.status_code in REFUSALS:
            record.outcome = "refused"
            record.last = time.monotonic()
            return
        joined.raise_for_status()
        async with aclosing(self._messages(session)) as lines:
            async for line in lines:
                if '"process_completed"' in line:
                    if '"success":false' in line:
                        record.outcome, record.why = "failed", line[:300]
                    break
                if '"process_generating"' not in line:
                    continue
                record.updates += 1
                record.last = time.monotonic()
                if BUSY in line:
                    record.outcome = "refused"
                    return
                if record.first is None and " to first token" in line:
                    record.first = record.last
                    record.outcome = "answered"
                if record.first and leave:
                    record.outcome = "left"
                    return

    async def api(self, record: VisitRecord, tokens: int, leave: bool) -> None:
        """Request one streamed chat completion."""
        messages = [{"role": "user", "content": "Hello"}]
        body = {"messages": messages, "stream": True, "max_tokens": tokens, "seed": record.seed}
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code in REFUSALS:
                record.outcome, record.last = "refused", time.monotonic()
                return
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if '"error"' in line:
                    busy = '"code":503' in line or BUSY in line
                    record.outcome, record.why = ("refused" if busy else "failed"), line[:300]
                    return
                if line == "data: [DONE]":
                    record.outcome = "answered"
                if '"content":"' not in line or '"content":""' in line:
                    continue
                record.last = time.monotonic()
                record.updates += 1
                record.first = record.first or record.last
                if leave:
                    record.outcome = "left"
                    return

    async def stop(self, record: VisitRecord) -> None:
        """Press Stop on the page of the visit ``record``."""
        body = {"data": [], "fn_index": self._stop["id"], "session_hash": f"visitor{record.seed}"}
        (await self.http.post("/gradio_api/queue/join", json=body)).raise_for_status()

    async def nonsense(self, record: VisitRecord, chance: random.Random) -> None:
        """Send one invalid request. The server must reject it with a status code, not fail."""
        path, body = chance.choice(NONSENSE)
        try:
            answer = await self.http.post(path, content=body(record.seed), headers=JSON)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            # The server closes the connection before a huge body is complete, so the client can get a reset.
            record.outcome = "nonsense" if body is _huge else "failed"
            return
        record.outcome = "nonsense" if answer.status_code < 500 or answer.status_code in REFUSALS else "failed"
        record.why = f"{path} {body(0)[:60]!r}: {answer.status_code}"

    async def tab(self, seed: int) -> None:
        """Keep a page open until cancelled, with the connection that Gradio uses to detect it."""
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
) -> VisitRecord:
    """Run one visit. 1 in ``nonsense`` visits is invalid, 1 in ``leaves`` disconnects early; 0 is none.

    Never raises.
    """
    record = VisitRecord(seed, "page" if seed % 2 else "api")
    try:
        if nonsense and chance.randrange(nonsense) == 0:
            await site.nonsense(record, chance)
            return record
        leave = bool(leaves) and chance.randrange(leaves) == 0
        await (site.page if seed % 2 else site.api)(record, tokens, leave)
    except Exception as error:
        record.outcome, record.why = "failed", f"{type(error).__name__}: {error}"[:300]
    return record


async def opened(http: httpx.AsyncClient) -> LoadClient:
    """Return a client that knows the events of /config."""
    return LoadClient(http, (await http.get("/config")).json())


async def crowd(
    site: LoadClient, count: int, tokens: int, first: int = 1, step: int = 1, **odd: int
) -> list[VisitRecord]:
    """Run ``count`` visits at once. With ``step`` 2, all are from one source."""
    chance = random.Random(first)
    seeds = range(first, first + count * step, step)
    return list(await asyncio.gather(*(visit(site, seed, tokens, chance, **odd) for seed in seeds)))
