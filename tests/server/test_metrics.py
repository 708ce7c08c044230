"""The metrics of answers, by source."""

from contextlib import aclosing

import httpx

from granite_demo.server.app import create_app
from granite_demo.server.metrics import Metrics, WatchedBackend
from granite_demo.server.run import running
from granite_demo.types.messages import Message
from granite_demo.types.requests import GenerationRequest
from tests.fakes import FakeBackend
from tests.load.visitors import crowd, opened


async def test_the_pages_answers_are_measured_apart_from_the_apis() -> None:
    backend = FakeBackend()
    with running(create_app(backend), backend) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            heard = await crowd(await opened(http), 2, 8, leaves=0, nonsense=0)  # one from each source
            text = (await http.get("/metrics")).text
    assert [(one.source, one.outcome) for one in heard] == [("page", "answered"), ("api", "answered")], heard
    for source in ("page", "api"):
        for line in (
            "prompt_tokens_total{%s} 5.0",
            "completion_tokens_total{%s} 3.0",
            "first_token_seconds_count{%s} 1.0",
        ):
            assert line % f'source="{source}"' in text


async def test_what_a_stopped_answer_has_written_counts() -> None:
    backend = FakeBackend(["a", "b", "c", "d"])
    metrics = Metrics(backend.status)
    watched = WatchedBackend(backend, metrics, "page").for_visitor("somebody")
    async with aclosing(watched.stream(GenerationRequest((Message("user", "Hi"),)))) as events:
        await anext(events)
        await anext(events)
    assert 'granite_demo_completion_tokens_total{source="page"} 2.0' in metrics.text().decode()
    assert watched.status() == backend.status()
    assert backend.visitors == ["somebody"]
