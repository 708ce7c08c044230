"""Scoring: tokens as they come, the figures of the whole, and what a click on an alternative writes."""

import math

import pytest

from granite_demo.errors import GraniteDemoError, InvalidRequestError
from granite_demo.types.events import Queued, ScoreSummary
from granite_demo.types.logprobs import ScoredToken, TokenAlternative
from granite_demo.types.requests import ScoreRequest
from granite_demo.types.stop import Stop
from granite_demo.ui.completion.score import SCORING_STOPPED, Scoring, figures_html, scorings, shown_values, up_to
from tests.fakes import READY, FakeBackend

TOKENS = [
    ScoredToken(1, "Hé"),
    ScoredToken(2, " is", -1.0, alternatives=(TokenAlternative(8, " was", -0.5), TokenAlternative(9, "\ufffd", -4.0))),
    ScoredToken(3, "\n", -2.0),
]
SUMMARY = ScoreSummary(3, -3.0, 0.25)


async def states(backend: FakeBackend, stop: Stop | None = None) -> list[Scoring]:
    request = ScoreRequest("Hé is\n")
    return [state async for state in scorings(backend, lambda: request, stop or Stop())]


async def test_the_last_state_has_all() -> None:
    backend = FakeBackend()
    backend.scores = [Queued(2), *TOKENS, SUMMARY]
    backend.delay = 0.05
    found = await states(backend)
    assert found[-1] == Scoring(tuple(TOKENS), SUMMARY, "", "note")
    assert any(0 < len(state.tokens) < 3 or "ahead" in state.note for state in found[:-1])


async def test_a_long_text_is_shown_in_few_updates() -> None:
    backend = FakeBackend()
    backend.scores = [*TOKENS * 40, SUMMARY]
    backend.delay = 0.01
    counts = [len(state.tokens) for state in await states(backend) if state.tokens]
    assert counts[-1] == 120
    assert all(later >= 1.3 * earlier for earlier, later in zip(counts[:-1], counts[1:-1], strict=False))


async def test_stop_keeps_what_there_is() -> None:
    backend, stop = FakeBackend(), Stop()
    backend.scores, backend.delay = [*TOKENS, SUMMARY], 0.3
    stop.set()
    [state] = await states(backend, stop)
    assert (state.note, state.summary) == (SCORING_STOPPED, None)


@pytest.mark.parametrize("error", [GraniteDemoError("It is broken."), RuntimeError("secret")])
async def test_an_error_ends_it_with_a_note(error: Exception) -> None:
    backend = FakeBackend()
    backend.scores, backend.error = [*TOKENS], error
    last = (await states(backend))[-1]
    assert (last.kind, list(last.tokens)) == ("error", TOKENS)
    assert "secret" not in last.note
    assert "broken" in last.note or "Something went wrong" in last.note


def test_the_figures_of_the_whole() -> None:
    shown = figures_html(TOKENS, SUMMARY)
    assert "<dd>3</dd>" in shown
    assert "<dd>-3.000 nats</dd>" in shown
    assert f"<dd>{math.exp(1.5):.3f}</dd>" in shown
    assert f"<dd>{3 / math.log(2) / 4:.3f}</dd>" in shown  # " is" and a line break
    assert figures_html(TOKENS, None) == figures_html([], SUMMARY) == ""
    assert "Perplexity" not in figures_html(TOKENS[:1], ScoreSummary(1, 0.0, 0.1))


def test_an_alternative_and_the_text_before_it() -> None:
    assert up_to(TOKENS, 1, 8) == "Hé was"
    for position, token, why in (
        (1, 9, "part of a character"),
        (1, 7, "no alternative"),
        (2, 8, "no alt"),
        (3, 8, "no"),
    ):
        with pytest.raises(InvalidRequestError, match=why):
            up_to(TOKENS, position, token)


def test_what_cannot_be_scored_says_why() -> None:
    from dataclasses import replace

    reason, run, special = shown_values(replace(READY, unable=(("scoring", "It cannot."), ("special tokens", "No."))))
    assert "It cannot." in reason.value
    assert not run.interactive
    assert not special.interactive
    reason, run, special = shown_values(READY)
    assert not reason.visible
    assert run.interactive
    assert special.interactive
