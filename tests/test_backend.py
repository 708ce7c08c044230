"""The base of the wrappers passes every call on."""

from typing import Any

import pytest

from granite_demo.backend import ForwardingBackend
from granite_demo.types.comparison import Comparing
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.messages import Message
from granite_demo.types.prompt_view import PromptView
from granite_demo.types.requests import CompareRequest, GenerationRequest, ScoreRequest
from tests.fakes import FakeBackend

ASKED = GenerationRequest((Message("user", "Hi"),))
REQUESTS = {
    "stream": ASKED,
    "score": ScoreRequest("text"),
    "compare": CompareRequest("text", LoadOptions("one"), LoadOptions("two")),
}


@pytest.fixture
def backend() -> FakeBackend:
    fake = FakeBackend()
    fake.scores = [ScoredToken(1, "a", -1.0)]
    fake.comparison = [Comparing("loading")]
    fake.view = PromptView((), 5, 0, 1000)
    return fake


@pytest.mark.parametrize("name", REQUESTS)
async def test_each_stream_has_the_events_of_the_backend(backend: FakeBackend, name: str) -> None:
    async def events(of: Any) -> list[Any]:
        return [event async for event in getattr(of, name)(REQUESTS[name])]

    passed = await events(ForwardingBackend(backend))
    assert passed
    assert passed == await events(backend)


@pytest.mark.parametrize("name", REQUESTS)
async def test_all_streams_pass_answer(backend: FakeBackend, name: str) -> None:
    class Silent(ForwardingBackend):
        async def answer(self, ask: Any, request: Any) -> Any:
            assert request is REQUESTS[name]
            return
            yield

    assert [event async for event in getattr(Silent(backend), name)(REQUESTS[name])] == []


async def test_the_control_and_the_state_are_the_backends(backend: FakeBackend) -> None:
    wrapper = ForwardingBackend(backend)
    wrapper.start()
    wrapper.select(LoadOptions("two"))
    wrapper.cancel_load()
    wrapper.unload()
    wrapper.close()
    assert backend.selected == [LoadOptions("two")]
    assert all(event.is_set() for event in (backend.started, backend.cancelled, backend.unloaded, backend.closed))
    assert (wrapper.status(), wrapper.choices()) == (backend.status(), backend.choices())
    assert await wrapper.inspect(ASKED) == backend.view


def test_a_visitor_gets_the_same_wrapper_around_the_visitors_backend(backend: FakeBackend) -> None:
    class Named(ForwardingBackend):
        def __init__(self) -> None:
            super().__init__(backend)
            self.name = "kept"

    whole = Named()
    own = whole.for_visitor("one")
    assert own is not whole
    assert (type(own), own.name, backend.visitors) == (Named, "kept", ["one"])
