"""Attacks on a public server: what strangers send that costs it more than it costs them."""

import asyncio
import io
import json
import random
import sys
import time
import zipfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import httpx
import psutil

from tests.load.process import LoadServer
from tests.load.soak import client, spread

AT_ONCE = 24
"""Requests of one address at a time."""
PATIENCE = 1.0
"""Seconds until an attacker gives up a request, and sends the next one."""
EVERY = 0.1
LOW_PRIORITY = getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", 15)
"""Of the process of the attackers: a class on Windows, and elsewhere a value of ``nice``."""
ATTACKERS = ("198.51.100.1", "203.0.113.1")
OTHER = "192.0.2.1"

_numbers = count()
FIXED = {"filled_html", "send", "record", "chosen", "earlier"}
"""Events that one client sends with the same values each time."""


def from_address(address: str) -> dict[str, str]:
    """Return the headers of a request through the trusted proxy from ``address``."""
    return {"x-forwarded-for": address}


class Page:
    """Sends events of the page with the values that an attacker chooses."""

    def __init__(self, http: httpx.AsyncClient, config: dict[str, Any]) -> None:
        self._http = http
        self._events = {event["api_name"]: event for event in reversed(config["dependencies"])}
        self._shown = {component["id"]: component["props"] for component in config["components"]}
        self._written: dict[tuple[Any, ...], str] = {}

    def _body(self, name: str, values: dict[int, Any], extra: dict[str, Any]) -> dict[str, Any]:
        event = self._events[name]
        data = [self._shown[number].get("value") for number in event["inputs"]]
        for place, value in values.items():
            data[place] = value
        return {"data": data, "fn_index": event["id"], **extra}

    async def _post(
        self, path: str, address: str, name: str, values: dict[int, Any], extra: dict[str, Any]
    ) -> httpx.Response:
        key = (path, name, *map(id, (*values.values(), *extra.values())))
        if key not in self._written or name not in FIXED:
            # Values that do not change are written once: an attacker has no work.
            self._written[key] = json.dumps(self._body(name, values, extra)).removesuffix("}")
        body = f'{self._written[key]}, "session_hash": "session{next(_numbers)}"}}'
        headers = {**from_address(address), "content-type": "application/json"}
        return await self._http.post(path, content=body, headers=headers)

    async def direct(self, address: str, name: str, values: dict[int, Any], **extra: Any) -> httpx.Response:
        """Send an event that runs outside the queue."""
        return await self._post("/gradio_api/run/predict", address, name, values, extra)

    async def join(self, address: str, name: str, values: dict[int, Any]) -> httpx.Response:
        """Send an event to the queue, and do not read its messages."""
        return await self._post("/gradio_api/queue/join", address, name, values, {})

    async def upload(self, address: str, name: str, data: bytes) -> None:
        """Upload a file, and add it to a conversation."""
        answer = await self._http.post(
            "/gradio_api/upload", files={"files": (name, data)}, headers=from_address(address)
        )
        if answer.status_code == 200:
            file = {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}
            await self.direct(address, "add_files", {0: {}, 1: [file]})


def turns(contents: Sequence[str], versions: bool = False, **answer: Any) -> dict[str, Any]:
    """Return a conversation with these texts: questions and answers, or versions of one answer."""
    found: dict[str, Any] = {}
    for number, content in enumerate(contents):
        role = "assistant" if number % 2 or (versions and number) else "user"
        parent = f"t{0 if versions else number - 1}" if number else None
        found[f"t{number}"] = {
            "id": f"t{number}", "parent": parent, "role": role, "content": content,
            **(answer if role == "assistant" else {}),
        }  # fmt: skip
    return {"version": 1, "id": "c1", "created": 1.0, "updated": 1.0, "head": f"t{len(contents) - 1}", "turns": found}


def cited(answers: int, length: int) -> dict[str, Any]:
    """Return a conversation with answers that cite documents of together 400,000 characters."""
    sentence = "The {0} of the house in {0} street was painted by {1} owners. "
    text = "".join(sentence.format(number % 700, number % 900) for number in range(200_000 // 60))[:199_000]
    citations = [{"document": "1", "start": 60 * number, "end": 60 * number + 59} for number in range(100)]
    chat = turns([text[:length]] * 2 * answers, citations=citations)
    return {**chat, "documents": [{"title": name, "text": f"{name} {text}"} for name in "ab"]}


def word_file(parts: int) -> bytes:
    """Return a Word file with ``parts`` parts."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("[Content_Types].xml", "<Types/>")
        for number in range(parts):
            file.writestr(f"word/{number}.xml", "<x/>")
    return data.getvalue()


Attack = Callable[[Page, str], Awaitable[Any]]
_CITED = cited(24, 20_000)
_EMPTY = turns([""] * 2_500)
_VERSIONS = turns(["x"] * 2_500, versions=True)
_LARGE = turns(["\U0001f600" + "<a" * 900_000])
_WORD = word_file(40_000)
_LINES, _FACES, _OPENED = "\n" * 400_000, "\U0001f600" * 450_000, {"conversation": _CITED}

ATTACKS: dict[str, Attack] = {
    "highlight": lambda page, who: page.direct(who, "filled_html", {0: "", 1: _LINES, 2: "", 3: "c"}),
    "unread": lambda page, who: page.join(who, "send", {0: _LARGE, 3: "Hi"}),
    "undo": lambda page, who: page.direct(who, "record", {0: _FACES, 1: 0}),
    "open": lambda page, who: page.direct(who, "chosen", {}, event_data=_OPENED),
    "history": lambda page, who: page.join(who, "send", {0: _CITED, 3: "Hi"}),
    "earlier": lambda page, who: page.direct(who, "earlier", {0: _EMPTY}),
    "versions": lambda page, who: page.direct(who, "earlier", {0: _VERSIONS}),
    "word": lambda page, who: page.upload(who, "a.docx", _WORD),
}


async def dishonest(http: httpx.AsyncClient, chance: random.Random) -> None:
    """Send one request of any kind from one of the two addresses, and give it up after a second."""
    page = await _page(http)
    with suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(PATIENCE):
            await chance.choice(list(ATTACKS.values()))(page, chance.choice(ATTACKERS))
    await asyncio.sleep(chance.random())


_pages: dict[str, Page] = {}


async def _page(http: httpx.AsyncClient) -> Page:
    name = str(http.base_url)
    if name not in _pages:
        _pages[name] = Page(http, (await http.get("/config")).json())
    return _pages[name]


async def attack(page: Page, kind: Attack, seconds: float) -> int:
    """Send requests of one kind from two addresses for ``seconds``. Returns how many were sent."""
    end, sent = time.monotonic() + seconds, 0

    async def repeat(address: str) -> None:
        nonlocal sent
        while time.monotonic() < end:
            sent += 1
            with suppress(TimeoutError, httpx.HTTPError):
                async with asyncio.timeout(PATIENCE):
                    await kind(page, address)
            await asyncio.sleep(0.02)

    await asyncio.gather(*(repeat(address) for address in ATTACKERS for _ in range(AT_ONCE)))
    return sent


async def _bystander(http: httpx.AsyncClient, ask: Callable[[], Awaitable[httpx.Response]], times: list[float]) -> None:
    while True:
        start = time.monotonic()
        (await ask()).raise_for_status()
        times.append(time.monotonic() - start)
        await asyncio.sleep(EVERY)


async def under_attack(server: LoadServer, name: str, seconds: float) -> tuple[int, dict[str, float]]:
    """Attack ``server`` from another process, which has only the time that the server and the visitor leave.

    So what the visitor waits is the time of the server, also where all of them share two cores.

    Returns the attackers' requests, and the p95 in seconds of what another visitor asks.
    """
    async with client(server.url) as http:
        config = (await http.get("/config")).json()
        page, headers = Page(http, config), from_address(OTHER)
        chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        asked: dict[str, Callable[[], Awaitable[httpx.Response]]] = {
            "health": lambda: http.get("/health", headers=headers),
            "page": lambda: http.get("/", headers=headers),
            "event": lambda: page.direct(OTHER, "earlier", {0: turns(["Hi", "Hello"])}),
            "api": lambda: http.post("/v1/chat/completions", json=chat, headers=headers),
        }
        times: dict[str, list[float]] = {name: [] for name in asked}
        watching = [asyncio.create_task(_bystander(http, ask, times[name])) for name, ask in asked.items()]
        command = (sys.executable, "-m", "tests.load.attacks", server.url, name, str(seconds))
        attackers = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        sent = int((await attackers.communicate())[0])
        failed = [task for task in watching if task.done()]
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        for task in failed:
            task.result()
    return sent, {name: spread(each)[1] for name, each in times.items()}


async def main(url: str, name: str, seconds: str) -> int:
    """Attack the server at ``url``. Returns the number of requests."""
    psutil.Process().nice(LOW_PRIORITY)
    async with client(url) as http:
        return await attack(Page(http, (await http.get("/config")).json()), ATTACKS[name], float(seconds))


if __name__ == "__main__":
    print(asyncio.run(main(*sys.argv[1:])))
