"""One request as the page sees it: snapshots that grow, and errors that are notes."""

import logging
import re
from contextlib import aclosing

import pytest

from granite_demo.errors import EngineError, InvalidRequestError
from granite_demo.types import GenerationRequest, ModelStatus
from granite_demo.ui.answering import Snapshot, snapshots
from tests.fakes import FakeBackend

REQUEST = GenerationRequest(prompt="Once")
CANARY = "hf_secret-canary"


async def collect(backend: FakeBackend) -> list[Snapshot]:
    return [snapshot async for snapshot in snapshots(backend, lambda: REQUEST)]


async def test_snapshots_grow_and_end_with_the_figures(backend: FakeBackend) -> None:
    backend.delay = 0.15
    shots = await collect(backend)
    texts = [text for text, _, _ in shots]
    assert len(set(texts)) >= 3
    assert texts == sorted(texts, key=len)
    assert all(after.startswith(before) for before, after in zip(texts, texts[1:], strict=False))
    assert {kind for _, _, kind in shots} == {"note"}
    assert "finished" not in shots[0][1]
    assert shots[-1][:2] == ("Hello world!", "3 tokens · 0.10 s to first token · 13.3 tokens/s · finished (stop)")
    assert backend.requests == [REQUEST]
    assert backend.running == 0


async def test_the_wait_for_the_first_token_shows(backend: FakeBackend) -> None:
    backend.first_delay = 0.6
    assert (await collect(backend))[0] == ("", "Waiting for the first token", "note")


async def test_the_wait_for_the_model_shows_its_progress(backend: FakeBackend) -> None:
    backend.first_delay = 0.6
    backend.state = ModelStatus("fake", "downloading", 0.25, "23 of 93 MB")
    first, *_, last = await collect(backend)
    assert first == ("", "Getting the model ready: downloading 25% 23 of 93 MB", "note")
    assert "finished (stop)" in last[1]


async def test_the_wait_for_the_model_without_known_progress(backend: FakeBackend) -> None:
    backend.first_delay = 0.6
    backend.state = ModelStatus("fake", "loading")
    assert (await collect(backend))[0][1] == "Getting the model ready: loading"


async def test_an_expected_error_is_told_under_the_text_so_far(backend: FakeBackend) -> None:
    backend.error = EngineError("The model ran out of memory. Use a shorter prompt.")
    shots = await collect(backend)
    assert shots[-1] == ("Hello world!", "The model ran out of memory. Use a shorter prompt.", "error")
    assert [kind for _, _, kind in shots].count("error") == 1


async def test_an_unforeseen_error_is_a_number_that_the_log_explains(
    backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.error = RuntimeError(CANARY)
    shots = await collect(backend)
    text, note, kind = shots[-1]
    assert (text, kind) == ("Hello world!", "error")
    number = re.search(r"the log knows this as ([0-9a-f]{8})\.$", note)
    assert number is not None
    assert CANARY not in str(shots)
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert number[1] in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is backend.error


async def test_each_unforeseen_error_has_its_own_number(backend: FakeBackend) -> None:
    backend.error = RuntimeError(CANARY)
    notes = {(await collect(backend))[-1][1] for _ in range(3)}
    assert len(notes) == 3


async def test_a_request_that_cannot_be_made_is_told(backend: FakeBackend) -> None:
    def build() -> GenerationRequest:
        raise InvalidRequestError("Seed must be a whole number.")

    assert [shot async for shot in snapshots(backend, build)] == [("", "Seed must be a whole number.", "error")]
    assert backend.requests == []


async def test_closing_cancels_the_request(backend: FakeBackend) -> None:
    backend.delay = 60
    async with aclosing(snapshots(backend, lambda: REQUEST)) as shots:
        assert (await anext(shots))[0] == "Hello"
        assert backend.running == 1
    assert backend.running == 0
