"""Two answers to one chat, and the likely cause of their differences."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pytest
from rich.console import Console

from granite_demo.cli import composition
from granite_demo.cli import main as cli
from granite_demo.cli.doctor import Side, diagnose, likely_cause, look
from granite_demo.errors import InvalidRequestError
from granite_demo.settings import Settings
from granite_demo.types.events import Finish, ReasoningDelta, TextDelta, Timings, TokenScored, Usage
from granite_demo.types.logprobs import ScoredToken, TokenAlternative
from granite_demo.types.messages import Message
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams
from tests.fakes import FakeBackend
from tests.fakeserver import FakeServer, ended, said, serving

FIRST = (TokenAlternative(1, "Paris", -0.1), TokenAlternative(2, "The", -3.0), TokenAlternative(3, "It", -4.0))
HERE = Side("granite", 20, "Paris is it.", "stop", 0.1, 20.0, FIRST, (5, 6, 7))


def moved(by: float) -> tuple[TokenAlternative, ...]:
    return tuple(replace(token, logprob=token.logprob - by) for token in FIRST)


def cause(**changes: object) -> str:
    return likely_cause(diagnose(HERE, replace(HERE, **changes)))  # type: ignore[arg-type]


def test_the_same_answers_have_no_cause() -> None:
    findings = diagnose(HERE, replace(HERE, model="another name", ttft=3.0, rate=None))
    assert likely_cause(findings) == ""
    assert [finding.what for finding in findings][:3] == ["model", "prompt", "first token"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt_ids": (5, 9, 7)}, "from token 1 on"),
        ({"prompt_ids": (5, 6)}, "from token 2 on"),
        ({"prompt_ids": (), "prompt_tokens": 31}, "differ in length"),
        ({"first": moved(0.5)}, "Another precision"),
        ({"first": moved(3.0)}, "Other weights"),
        ({"first": (TokenAlternative(9, "Rome", -0.1),)}, "no likely token"),
        ({"text": "Paris is not it."}, "equally likely"),
        ({"first": moved(3.0), "text": "Rome"}, "Other weights"),
    ],
)
def test_the_first_difference_names_the_cause(changes: dict[str, object], words: str) -> None:
    assert words in cause(**changes)


@pytest.mark.parametrize("changes", [{"first": moved(0.1)}, {"first": ()}, {"prompt_ids": ()}])
def test_rounding_or_a_missing_value_is_not_a_difference(changes: dict[str, object]) -> None:
    assert cause(**changes) == ""


def test_texts_are_shown_where_they_part() -> None:
    text = "x" * 100
    found = next(
        f for f in diagnose(replace(HERE, text=text + "a"), replace(HERE, text=text + "b")) if f.what == "text"
    )
    assert (found.here, found.there) == (repr("x" * 20 + "a"), repr("x" * 20 + "b"))


async def test_one_side_is_looked_at_with_log_probabilities_or_without() -> None:
    class Refuses(FakeBackend):
        async def stream(self, request):  # type: ignore[no-untyped-def]
            if request.sampling.logprobs is not None:
                raise InvalidRequestError("logprobs are not supported")
            async for event in super().stream(request):
                yield event

    request = GenerationRequest((Message("user", "Hi"),), sampling=SamplingParams(max_tokens=3))
    backend = FakeBackend()
    backend.script = [
        TokenScored(ScoredToken(1, "Paris", -0.1, alternatives=FIRST)),
        TextDelta("Paris", 1),
        TokenScored(ScoredToken(2, ".", -0.1)),
        Finish("stop", Usage(5, 1), Timings(0.1, 0.2)),
    ]
    side = await look(backend, request, (1, 2))
    assert (side.first, side.text, side.prompt_tokens, side.prompt_ids) == (FIRST, "Paris", 5, (1, 2))
    assert backend.requests[0].sampling.logprobs == 5
    refusing = Refuses()
    side = await look(refusing, request)
    assert (side.first, side.text) == ((), "Hello world!")


def test_a_server_that_counts_no_tokens_is_not_blamed_for_them() -> None:
    findings = diagnose(HERE, replace(HERE, prompt_ids=(), prompt_tokens=0))
    assert likely_cause(findings) == ""
    assert findings[1].there == "unknown"


async def test_thinking_is_compared_too() -> None:
    backend = FakeBackend()
    end = Finish("length", Usage(5, 2), Timings(0.1, 0.2), None)
    backend.script = [ReasoningDelta("Hm", 1), TextDelta("Yes", 2), end]
    side = await look(backend, GenerationRequest(messages=(Message("user", "?"),)))
    assert side.text == "HmYes"


# The command


def test_a_server_with_another_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    def opened(settings: Settings, console: Console) -> Any:
        if not settings.backend:
            assert settings.model == "here"
            return FakeBackend()
        return composition.ready_backend(settings, console)

    monkeypatch.setattr(cli, "ready_backend", opened)
    server = FakeServer([said("Hello"), said(" moon!"), ended()])
    with serving(server):
        code, out, _ = run("doctor", "--model", "here", "--url", server.url, "--json")
    assert code == 1
    report = json.loads(out)
    assert "text" in [finding["what"] for finding in report["findings"] if finding["cause"]]
    assert report["cause"]


def test_without_a_server_it_shows_the_installation(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("doctor", "--json")
    facts = json.loads(out)
    assert (code, facts["installation"]) == (0, "the full one (requirements.txt)")
    assert facts["torch"] == version("torch")
    assert re.match("run on (cpu|cuda|mps) [(].+[)]$", facts["safetensors files"])
    assert "the full one (requirements.txt)" in run("doctor")[1]


@pytest.mark.usefixtures("without_torch")
def test_it_says_that_the_installation_is_the_small_one(run: Callable[..., tuple[int, str, str]]) -> None:
    facts = json.loads(run("doctor", "--json")[1])
    assert facts["installation"].startswith("the small one without torch (requirements-cpu.txt)")
    assert facts["safetensors files"].endswith("Run: pip install -r requirements.txt")
