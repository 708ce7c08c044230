"""Clients of the page, which use the same protocol as a browser, and clients of the API.

``gradio_client`` is not used: its threads block each other while they wait for updates. On a machine with many cores,
sixteen such clients get few updates.
"""

import asyncio
import json
import multiprocessing
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import httpx

from granite_demo.bench.measure import TimedAnswer, TimedRun
from granite_demo.errors import EngineError

VISIT_SECONDS = 600


@contextmanager
def crowd(url: str) -> Iterator[Callable[[int, Sequence[str], bool], TimedRun]]:
    """Yield a function that asks the server at ``url`` several questions at the same time and waits for the answers.

    Its arguments are the maximum of tokens in an answer, the questions, and True to use the API and not the page. It
    raises EngineError if there is no answer. The clients run in a separate process, because in the process of the
    server they would take time from the engine.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_crowd, args=(theirs, url), daemon=True)
    process.start()

    def ask(tokens: int, questions: Sequence[str], api: bool = False) -> TimedRun:
        ours.send((tokens, list(questions), api))
        while not ours.poll(0.2):
            if not process.is_alive():
                raise EngineError("The process of the visitors ended. Its error is shown above.")
        answer = ours.recv()
        if isinstance(answer, TimedRun):
            return answer
        raise EngineError(str(answer))

    try:
        yield ask
    finally:
        ours.send(None)
        process.join(10)
        process.kill()


def _serve_crowd(connection: Connection, url: str) -> None:
    while (asked := connection.recv()) is not None:
        try:
            tokens, questions, api = asked
            connection.send(asyncio.run((ask_api if api else ask_page)(url, tokens, questions)))
        except Exception as error:
            connection.send(str(error))


async def ask_page(url: str, tokens: int, questions: Sequence[str]) -> TimedRun:
    """Ask each question in the Chat tab of the page at ``url``, greedily, all at the same time, one visitor for each.

    All other settings have the defaults of the page. Raises EngineError if there is no answer.
    """
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=VISIT_SECONDS, limits=limits) as http:
        config = (await http.get("/config")).json()
        event = next(event for event in config["dependencies"] if event["api_name"] == "send")
        shown = {component["id"]: component["props"] for component in config["components"]}
        inputs = [shown[number] for number in event["inputs"]]
        start = time.perf_counter()

        async def ask(question: str) -> TimedAnswer:
            chosen = {"Message": question, "Max new tokens": tokens, "Temperature": 0.0}
            data = [chosen.get(props.get("label"), props.get("value")) for props in inputs]
            session = secrets.token_hex(8)
            body = {"data": data, "fn_index": event["id"], "session_hash": session}
            (await http.post("/gradio_api/queue/join", json=body)).raise_for_status()
            async with aclosing(updates(http, session)) as outputs:
                return await read_answer(start, outputs)

        return TimedRun(tuple(await asyncio.gather(*map(ask, questions))))


async def updates(http: httpx.AsyncClient, session: str) -> AsyncGenerator[list[Any]]:
    """Yield the output values of an event each time they change. Raises EngineError if the event fails."""
    from gradio_client.utils import apply_diff

    known: list[Any] = []
    async with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        async for line in stream.aiter_lines():
            message = json.loads(line[5:]) if line.startswith("data:") else {}
            if message.get("msg") == "process_generating":
                changes = message["output"]["data"]
                known = [apply_diff(*pair) for pair in zip(known, changes, strict=True)] if known else changes
                yield known
            elif message.get("msg") == "process_completed":
                if not message["success"]:
                    raise EngineError(f"The page did not answer: {message['output']}")
                return


async def read_answer(start: float, outputs: AsyncGenerator[list[Any]]) -> TimedAnswer:
    """Read ``outputs`` until the answer is complete. Its note has the number of tokens.

    Times are in seconds after ``start``. Raises EngineError if there is no answer.
    """
    first, note, counts = 0.0, "", []
    async for history, *_ in outputs:
        if not isinstance(history, list):  # a refused question changes only the note
            continue
        note, now = history[-1]["content"][-1]["text"], time.perf_counter() - start
        if " to first token" in note and (count := _count(note)):
            first = first or now
            counts.append((now, count))
    if not (tokens := _count(note)):
        raise EngineError(f"The page did not answer: {note}")
    return TimedAnswer(tokens, first, time.perf_counter() - start, counts=tuple(counts))


def _count(note: str) -> int:
    found = re.search(r"([\d,]+) tokens? ·", note)
    return int(found[1].replace(",", "")) if found else 0


async def ask_api(url: str, tokens: int, questions: Sequence[str]) -> TimedRun:
    """Ask the API at ``url`` all ``questions`` at the same time, greedily."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        [model, *_] = (await client.models.list()).data
        start = time.perf_counter()

        async def answer(question: str) -> TimedAnswer:
            first, count = 0.0, 0
            stream = await client.chat.completions.create(
                model=model.id,
                messages=[{"role": "user", "content": question}],
                max_tokens=tokens,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
            async for chunk in stream:
                if chunk.usage:
                    count = chunk.usage.completion_tokens
                elif not first and chunk.choices and chunk.choices[0].delta.content:
                    first = time.perf_counter() - start
            last = time.perf_counter() - start
            return TimedAnswer(count, first or last, last)

        return TimedRun(tuple(await asyncio.gather(*map(answer, questions))))
