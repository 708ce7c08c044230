"""Tests for the visitors of a page with a fake backend."""

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
def test_visitors_ask_at_the_same_time_and_greedily(backend: FakeBackend) -> None:
    backend.delay = 0.05
    with running(create_app(backend), backend) as url, visitors.crowd(url) as visit:
        page = visit(2, ["one?", "two?"], False)
        api = visit(2, ["one?", "two?"], True)
        requests = list(backend.requests)
        backend.error = EngineError("The fake failed.")
        with pytest.raises(EngineError, match="The fake failed"):
            visit(2, ["three?"], False)
        with pytest.raises(EngineError, match="The fake failed"):
            visit(2, ["three?"], True)
    for run in (page, api):
        assert [answer.tokens for answer in run.answers] == [2, 2]
        assert all(0 < answer.first < answer.last for answer in run.answers)
    assert sorted(request.messages[-1].content for request in requests) == ["one?", "one?", "two?", "two?"]
    assert {(request.sampling.max_tokens, request.sampling.temperature) for request in requests} == {(2, 0)}


async def test_a_page_that_does_not_answer_raises() -> None:
    async def outputs() -> AsyncGenerator[list[Any]]:
        yield [{"__type__": "update"}, None]
        yield [[{"content": [{"text": "Something went wrong."}]}], None]

    with pytest.raises(EngineError, match=r"Something went wrong\."):
        await visitors.read_answer(0.0, outputs())
