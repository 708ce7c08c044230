"""A client of the public page on a real port that uses only HTTP."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from granite_demo.access import Access, Limits
from granite_demo.backend import ManagedBackend
from granite_demo.backends.limited import LimitedBackend
from granite_demo.chat import conversation
from granite_demo.server.app import create_app
from granite_demo.server.policy import PUBLIC_MAX_BODY, Policy
from granite_demo.server.run import running

TOKEN = "canary-admin-token"
EMPTY = conversation.dump(conversation.start())


def asked(text: str) -> dict[str, Any]:
    """Return a conversation whose last turn is the question ``text``."""
    return conversation.dump(conversation.add(conversation.start(), "user", content=text))


class Stranger(httpx.Client):
    """Calls the handlers of the page without a page."""

    config: dict[str, Any]

    def event(self, name: str) -> dict[str, Any]:
        """Return the first event with the name of the handler."""
        found: dict[str, Any] = next(one for one in self.config["dependencies"] if one["api_name"] == name)
        return found

    def values(self, event: dict[str, Any]) -> list[Any]:
        """Return the initial values of the inputs of the page."""
        shown = {component["id"]: component["props"] for component in self.config["components"]}
        return [shown[component].get("value") for component in event["inputs"]]

    def call(self, name: str, data: list[Any] | None = None, session: str = "stranger") -> httpx.Response:
        """Return the answer of a handler that runs outside the queue."""
        event = self.event(name)
        values = self.values(event) if data is None else data
        body = {"data": values, "fn_index": event["id"], "session_hash": session}
        return self.post("/gradio_api/run/predict", json=body)

    def question(self, text: str, **changes: Any) -> list[Any]:
        """Return the values that the page sends with the question ``text``. ``changes`` are settings by label."""
        event = self.event("send")
        labels = {component["id"]: component["props"].get("label") for component in self.config["components"]}
        chosen = {"Message": text, **changes}
        pairs = zip(event["inputs"], self.values(event), strict=True)
        return [chosen.get(str(labels[component]), value) for component, value in pairs]

    def ask(self, text: str, session: str = "stranger", **changes: Any) -> str:
        """Return all messages of the answer to ``text``. ``changes`` are settings by label."""
        return self.queued(self.event("send")["id"], self.question(text, **changes), session)

    def queued(self, number: int, data: list[Any], session: str = "stranger") -> str:
        """Return all messages of an event of the queue, or the reason why the queue rejected it."""
        joined = self.join(number, data, session)
        if joined.status_code != 200:
            return joined.text
        heard = []
        with self.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                heard.append(line)
                if line.startswith("data:") and json.loads(line[5:])["msg"] == "process_completed":
                    break
        return "\n".join(heard)

    def join(self, number: int, data: list[Any], session: str = "stranger") -> httpx.Response:
        """Send an event to the queue."""
        return self.post("/gradio_api/queue/join", json={"data": data, "fn_index": number, "session_hash": session})


@contextmanager
def public(
    backend: ManagedBackend, limits: Limits | None = None, token: str = TOKEN, **policy: Any
) -> Iterator[Stranger]:
    """Yield a client of the public page with ``backend``."""
    limited = LimitedBackend(backend, limits or Limits())
    app = create_app(limited, Access(True, token), Policy(**{"max_body": PUBLIC_MAX_BODY, **policy}))
    with running(app, limited) as url, Stranger(base_url=url, timeout=20) as client:
        found = client.get("/config")
        client.config = found.json() if found.status_code == 200 else {}
        yield client
