"""Visitors of the page, clients that speak its own protocol as a browser does, and programs that ask its API."""

import asyncio
import multiprocessing
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from granite_demo import conversations
from granite_demo.bench.figures import Answer, Run
from granite_demo.errors import EngineError


@contextmanager
def client_of(url: str) -> Iterator[Any]:
    """A visitor of the page at ``url``, who leaves at the end of the block."""
    from gradio_client import Client

    client = Client(url, verbose=False)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def crowd(url: str, count: int) -> Iterator[Callable[[int, Sequence[str], bool], Run]]:
    """So many visitors of the page at ``url``; call it with the tokens an answer may have, and a question for each.

    With True as the third argument they ask the API.

    They are a process of their own, as browsers are: in the server's they would take time from its engine. Raises
    EngineError where an answer does not come.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_crowd, args=(theirs, url, count), daemon=True)
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


def _serve_crowd(connection: Connection, url: str, count: int) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(client_of(url)) for _ in range(count)]
        while (asked := connection.recv()) is not None:
            try:
                tokens, questions, api = asked
                run = asyncio.run(ask_api(url, tokens, questions)) if api else visit(clients, tokens, questions)
                connection.send(run)
            except Exception as error:
                connection.send(str(error))


def visit(clients: Sequence[Any], tokens: int, questions: Sequence[str]) -> Run:
    """As many of ``clients`` as there are ``questions`` ask one each, all at once."""
    start = time.perf_counter()
    jobs = [ask_page(client, tokens, question) for client, question in zip(clients, questions, strict=False)]
    with ThreadPoolExecutor(len(jobs)) as followers:
        return Run(tuple(followers.map(partial(follow, start), jobs)))


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


def ask_page(client: Any, tokens: int, question: str) -> Any:
    """Begin one chat: greedy, with all other settings as the page has them."""
    conversation = conversations.add(conversations.start(), "user", content=question)
    answer = next(event for event in client.config["dependencies"] if event["api_name"] == "answer")
    shown = {component["id"]: component["props"] for component in client.config["components"]}
    chosen = {"Max new tokens": tokens, "Temperature": 0.0}
    inputs = [shown[number] for number in answer["inputs"][2:]]  # after the conversation, and whether to answer it
    values = [chosen.get(props.get("label"), props.get("value")) for props in inputs]
    return client.submit(conversations.dump(conversation), conversation.head, *values, fn_index=answer["id"])


def follow(start: float, job: Any) -> Answer:
    """Wait for the answer, which tells its number of tokens. Raises EngineError where there is none."""
    first = 0.0
    note = ""
    for history, *_ in job:
        if not isinstance(history, list):  # only the message box changed
            continue
        note = history[-1]["content"][-1]["text"]
        if not first and " to first token" in note:
            first = time.perf_counter() - start
    found = re.search(r"([\d,]+) tokens? ·", note)
    if not found:
        raise EngineError(f"The page did not answer: {note}")
    return Answer(int(found[1].replace(",", "")), first, time.perf_counter() - start)
