"""Visitors of the page, who speak its own protocol as a browser does, and programs that ask its API.

Not ``gradio_client``, which waits for updates in threads that keep each other's lock: sixteen of them hear little on a
machine with many cores.
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

from granite_demo.bench.measure import Answer, Run
from granite_demo.chat import conversation as conversations
from granite_demo.errors import EngineError

PATIENCE_SECONDS = 600


@contextmanager
def crowd(url: str) -> Iterator[Callable[[int, Sequence[str], bool], Run]]:
    """Visitors of the page at ``url``; call it with the tokens an answer may have, and a question for each of them.

    With True as the third argument they ask the API.

    They are a process of their own, as browsers are: in the server's they would take time from its engine. Raises
    EngineError where an answer does not come.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_crowd, args=(theirs, url), daemon=True)
    process.start()

    def ask(tokens: int, questions: Sequence[str], api: bool = False) -> Run:
        ours.send((tokens, list(questions), api))
        while not ours.poll(0.2):
            if not process.is_alive():
                raise EngineError("The visitors' process ended. Its error stands above.")
        answer = ours.recv()
        if isinstance(answer, Run):
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


async def ask_page(url: str, tokens: int, questions: Sequence[str]) -> Run:
    """A visitor of the page at ``url`` for each of ``questions`` asks it in the Chat tab: greedily, all at once.

    All other settings are as the page has them.
    """
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS, limits=limits) as http:
        config = (await http.get("/config")).json()
        event = next(event for event in config["dependencies"] if event["api_name"] == "answer")
        shown = {component["id"]: component["props"] for component in config["components"]}
        chosen = {"Max new tokens": tokens, "Temperature": 0.0}
        inputs = [shown[number] for number in event["inputs"][2:]]  # after the conversation, and whether to answer it
        values = [chosen.get(props.get("label"), props.get("value")) for props in inputs]
        start = time.perf_counter()

        async def ask(question: str) -> Answer:
            conversation = conversations.add(conversations.start(), "user", content=question)
            session = secrets.token_hex(8)
            data = [conversations.dump(conversation), conversation.head, *values]
            body = {"data": data, "fn_index": event["id"], "session_hash": session}
            (await http.post("/gradio_api/queue/join", json=body)).raise_for_status()
            async with aclosing(updates(http, session)) as outputs:
                return await heard(start, outputs)

        return Run(tuple(await asyncio.gather(*map(ask, questions))))


async def updates(http: httpx.AsyncClient, session: str) -> AsyncGenerator[list[Any]]:
    """The values of an event's outputs, as they change. Raises EngineError where it fails."""
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


async def heard(start: float, outputs: AsyncGenerator[list[Any]]) -> Answer:
    """Until the answer is there, which tells its number of tokens. Raises EngineError where there is none."""
    first, note, counts = 0.0, "", []
    async for history, *_ in outputs:
        if not isinstance(history, list) or not history:  # only the message box changed
            continue
        note, now = history[-1]["content"][-1]["text"], time.perf_counter() - start
        if " to first token" in note and (count := _count(note)):
            first = first or now
            counts.append((now, count))
    if not (tokens := _count(note)):
        raise EngineError(f"The page did not answer: {note}")
    return Answer(tokens, first, time.perf_counter() - start, counts=tuple(counts))


def _count(note: str) -> int:
    found = re.search(r"([\d,]+) tokens? ·", note)
    return int(found[1].replace(",", "")) if found else 0


async def ask_api(url: str, tokens: int, questions: Sequence[str]) -> Run:
    """Ask the API at ``url`` the ``questions``, all at once and greedily."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        [model, *_] = (await client.models.list()).data
        start = time.perf_counter()

        async def answer(question: str) -> Answer:
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
            return Answer(count, first or last, last)

        return Run(tuple(await asyncio.gather(*map(answer, questions))))
