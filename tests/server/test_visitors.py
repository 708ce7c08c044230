"""Fifty visitors at once: nobody's text crosses over to another."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx

from granite_demo import conversations
from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.types import Finish, GenerationRequest, ReasoningDelta, StreamEvent, TextDelta, Timings, Usage
from tests.fakes import FakeBackend

VISITORS = 50
WORDS = 24


class Echo(FakeBackend):
    """Says the question again and again, as thinking and as answer."""

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        self.requests.append(request)
        word = request.messages[-1].content
        for count in range(1, WORDS + 1):
            yield ReasoningDelta(f"{word} ", count) if count < WORDS / 2 else TextDelta(f"{word} ", count)
            await asyncio.sleep(0.05)
        yield Finish("stop", Usage(5, WORDS, WORDS // 2), Timings(0.1, 1.0))


async def visit(http: httpx.AsyncClient, config: dict[str, Any], number: int) -> str:
    """All that one visitor's browser hears of the answer to one question."""
    answer = next(event for event in config["dependencies"] if event["api_name"] == "answer")
    shown = {component["id"]: component["props"] for component in config["components"]}
    conversation = conversations.add(conversations.start(), "user", content=f"canary-{number}-")
    values = [shown[component].get("value") for component in answer["inputs"][2:]]
    data = [conversations.dump(conversation), conversation.head, *values]
    session = {"session_hash": f"visitor{number}"}
    asked = {"data": data, "fn_index": answer["id"], **session}
    # Those who come when the page's queue is full are told so, and come again.
    while (joined := await http.post("/gradio_api/queue/join", json=asked)).status_code == 503:
        await asyncio.sleep(0.2)
    joined.raise_for_status()
    heard = []
    async with http.stream("GET", "/gradio_api/queue/data", params=session) as stream:
        async for line in stream.aiter_lines():
            heard.append(line)
            if line.startswith("data:") and json.loads(line[5:])["msg"] == "process_completed":
                break
    return "".join(heard)


async def test_no_text_crosses_between_fifty_visitors() -> None:
    backend = Echo()
    with running(create_app(backend), backend) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as http:
            config = (await http.get("/config")).json()
            heard = await asyncio.gather(*(visit(http, config, number) for number in range(VISITORS)))
    assert len(backend.requests) == VISITORS
    for number, text in enumerate(heard):
        assert text.count(f"canary-{number}-") > WORDS
        assert not [other for other in range(VISITORS) if other != number and f"canary-{other}-" in text]
