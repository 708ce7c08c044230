"""Twice the input takes about twice the time: nothing that a visitor sends has a cost that grows with its square."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from granite_demo.chat import conversation as conversations
from granite_demo.types.messages import Document
from granite_demo.ui.chat.messages import chat_messages
from granite_demo.ui.chat.sources import grounding_html
from granite_demo.ui.completion.edit_history import History, written
from granite_demo.ui.completion.fill import filled_html
from granite_demo.ui.markdown import shown_text
from tests.fakes import FakeBackend
from tests.load.attacks import cited, turns
from tests.threats.stranger import Stranger, public

MOST = 3.5
"""Times the time of half the input. Caches of the processor and noise take a part of it; a square would be 4."""
LEAST = 0.02
"""Seconds that are not compared: noise."""
PIECES = (
    "\n",
    " \n",
    "<a",
    "$x$ ",
    "$",
    "`",
    "[",
    "a.",
    "/",
    "&",
    "> ",
    "\\(",
    "1, ",
    "- a\n",
    "|a",
    "A. ",
    "\U0001f600",
)

Work = Callable[[int], Any]


def written_often(size: int) -> None:
    history = History()
    for number in range(size // 100):
        history = written(history, f"{number}{'x' * 1000}")


def shown(value: dict[str, Any]) -> None:
    chat_messages(conversations.load(value), everything=True)


def repeated(work: Callable[[str], Any], piece: str) -> Work:
    return lambda size: work(piece * size)


def filled(text: str) -> str:
    return filled_html("", text, "", "c")


WORK: dict[str, Work] = {
    **{f"text {piece!r}": repeated(shown_text, piece) for piece in PIECES},
    **{f"fill {piece!r}": repeated(filled, piece) for piece in PIECES[:8]},
    "turns": lambda size: shown(turns([""] * (size // 20))),
    "versions": lambda size: shown(turns(["x"] * (size // 20), versions=True)),
    "cited answers": lambda size: shown(cited(size // 2_000 or 1, 2_000)),
    "calls": lambda size: shown(
        turns(["Hi", "x"], calls=[{"name": "f", "arguments": "[" * 300 + "]" * 300}] * (size // 100))
    ),
    "sources": lambda size: grounding_html(
        "The house was painted. " * (size // 40), [Document("a", "The house. " * size)], []
    ),
    "states of a text": written_often,
}


def seconds(work: Work, size: int) -> float:
    """Return the time of the processor for one run: the shortest of two."""
    found = []
    for _ in range(2):
        start = time.process_time()
        work(size)
        found.append(time.process_time() - start)
    return min(found)


def check(name: str, work: Work, size: int) -> None:
    """Raise AssertionError where twice the input takes much more than twice the time, two times in a row."""
    for _ in range(2):
        once, twice = seconds(work, size), seconds(work, 2 * size)
        if twice < MOST * max(once, LEAST):
            return
    raise AssertionError(f"{name}: {once:.3f} s for {size:,}, {twice:.3f} s for twice as much")


@pytest.mark.parametrize("name", WORK)
def test_twice_the_input_takes_twice_the_time(name: str) -> None:
    WORK[name](100)  # imports and caches
    check(name, WORK[name], 20_000)


@pytest.fixture(scope="module")
def site() -> Iterator[Stranger]:
    """Yield a public page for all events."""
    with public(FakeBackend()) as stranger:
        yield stranger


def values_of(size: int) -> dict[str, list[Any]]:
    """Values of ``size`` by the type of the component that gets them."""
    chats = [turns([""] * (size // 20)), turns(["x"] * (size // 20), versions=True), cited(2, size // 4)]
    texts = [piece * (size // len(piece)) for piece in PIECES]
    return {"json": [*chats, *texts[:2]], "textbox": texts[:5], "html": texts[:4], "dropdown": texts[:1]}


def send(site: Stranger, event: dict[str, Any], place: int, values: dict[int, Any], size: int) -> None:
    """Send ``event`` with a value of ``size`` as its input number ``place``."""
    data = site.values(event)
    data[place] = values[size]
    if event["queue"]:
        site.queued(event["id"], data)
        return
    shown = {"id": "t1", "conversation": data[place], "action": "retry"}
    body = {"data": data, "fn_index": event["id"], "session_hash": "stranger", "event_data": shown}
    site.post("/gradio_api/run/predict", json=body)


@pytest.mark.release
def test_twice_the_input_of_each_event_takes_twice_the_time(site: Stranger) -> None:
    once, twice = values_of(20_000), values_of(40_000)
    types = {component["id"]: component["type"] for component in site.config["components"]}
    slow = []
    for event in site.config["dependencies"]:
        for place, component in enumerate(event["inputs"] if event["backend_fn"] else ()):
            kind = types[component]
            pairs = list(zip(once.get(kind, ()), twice.get(kind, ()), strict=True))
            for number, pair in enumerate(pairs[:2] if event["queue"] else pairs):  # an answer takes a while
                values = dict(zip((20_000, 40_000), pair, strict=True))
                try:
                    check(f"{event['api_name']} {place} {number}", partial(send, site, event, place, values), 20_000)
                except AssertionError as error:
                    slow.append(str(error))
    assert not slow
