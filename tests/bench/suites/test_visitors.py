"""Visitors of a real page over a backend that answers at once."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from granite_demo.bench.suites import visitors
from granite_demo.errors import EngineError
from granite_demo.server.app import create_app
from granite_demo.server.run import running
from tests.fakes import FakeBackend


@pytest.mark.release
@pytest.mark.slow
def test_visitors_ask_at_once_and_greedily(backend: FakeBackend) -> None:
    backend.delay = 0.05
    with running(create_app(backend), backend) as url, visitors.crowd(url) as visit:
        run = visit(2, ["one?", "two?"], False)
        asked = visit(2, ["one?", "two?"], True)
        requests = list(backend.requests)
        backend.error = EngineError("The fake failed.")
        with pytest.raises(EngineError, match="The fake failed"):
            visit(2, ["three?"], False)
        with pytest.raises(EngineError, match="The fake failed"):
            visit(2, ["three?"], True)
    assert [answer.tokens for answer in asked.answers] == [2, 2]
    assert all(0 < answer.first < answer.last for answer in asked.answers)
    assert [answer.tokens for answer in run.answers] == [2, 2]
    assert all(0 < answer.first < answer.last for answer in run.answers)
    assert sorted(request.messages[-1].content for request in requests) == ["one?", "one?", "two?", "two?"]
    assert {(request.sampling.max_tokens, request.sampling.temperature) for request in requests} == {(2, 0)}


async def test_a_page_that_does_not_answer_is_an_error() -> None:
    async def outputs() -> AsyncGenerator[list[Any]]:
        yield [{"__type__": "update"}, None]
        yield [[{"content": [{"text": "Something went wrong."}]}], None]

    with pytest.raises(EngineError, match=r"Something went wrong\."):
        await visitors.heard(0.0, outputs())
