"""``score``: what is asked for, what is printed where, and the exit codes."""

import io
import json
import sys
from math import inf

import pytest
from rich.console import Console

from granite_demo.cli import main as cli
from granite_demo.cli.main import main
from granite_demo.errors import ContextOverflowError
from granite_demo.settings import Settings
from granite_demo.types.events import Queued, ScoreSummary
from granite_demo.types.logprobs import ScoredToken, TokenAlternative
from granite_demo.types.requests import ScoreRequest
from tests.fakes import FakeBackend

TOKENS = [
    ScoredToken(5, "The[b]\x1b"),
    ScoredToken(6, "\ncat", -0.5, None, 1.25, (TokenAlternative(6, "\ncat", -0.5), TokenAlternative(7, " dog", -2.0))),
]
SUMMARY = ScoreSummary(2, -0.5, 0.1)


@pytest.fixture
def opened(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that a fake backend was opened with."""
    found: list[Settings] = []

    def open_fake(settings: Settings, console: Console) -> FakeBackend:
        found.append(settings)
        return backend

    monkeypatch.setattr(cli, "ready_backend", open_fake)
    backend.scores = [Queued(1), *TOKENS, SUMMARY]
    return found


def score(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["score", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, " ".join(err.split())


def test_a_table_and_the_perplexity(
    backend: FakeBackend, opened: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = score(capsys, "The cat", "--model", "sample")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines == [
        ["token", "logprob", "p", "entropy"],
        [r"'The[b]\x1b'"],
        [r"'\ncat'", "-0.500", "0.607", "1.250"],
        ["2", "tokens,", "log", "probability", "-0.500,", "perplexity", "1.649"],
    ]
    assert backend.scored == [ScoreRequest("The cat", None, 0)]
    assert opened[0].model == "sample"
    assert backend.closed.is_set()


def test_alternatives_are_a_column(
    backend: FakeBackend, opened: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = score(capsys, "The cat", "--alternatives", "2", "--special-tokens")
    assert code == 0
    assert r"'\ncat' 0.61, ' dog' 0.14" in out
    assert backend.scored == [ScoreRequest("The cat", None, 2, True)]


def test_json_and_standard_input(
    backend: FakeBackend,
    opened: list[Settings],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"The cat\n")))
    code, out, err = score(capsys, "-", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["total"] == {"tokens": 2, "logprob": -0.5, "seconds": 0.1, "perplexity": SUMMARY.perplexity}
    assert found["tokens"][0] == {"id": 5, "text": "The[b]\x1b", "logprob": None, "entropy": None, "alternatives": []}
    assert found["tokens"][1]["alternatives"][1] == {"id": 7, "text": " dog", "logprob": -2.0, "sampled": None}
    assert backend.scored[0].text == "The cat"


def test_what_json_cannot_write_is_null(
    backend: FakeBackend, opened: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    backend.scores = [ScoredToken(5, "a"), ScoredToken(6, "b", -inf, None, 0.0), ScoreSummary(2, -inf, 0.1)]
    code, out, _ = score(capsys, "ab", "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert (code, found["tokens"][1]["logprob"], found["total"]["logprob"]) == (0, None, None)


def test_errors_and_their_exit_codes(
    backend: FakeBackend, opened: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(capsys, "")[0] == 2
    assert score(capsys, "a", "--alternatives", "21")[0] == 2
    assert not opened
    backend.scores, backend.error = [], ContextOverflowError(11, 10)
    code, out, err = score(capsys, "The cat")
    assert (code, out) == (1, "")
    assert "11 tokens" in err
    backend.error = None
    code, _, err = score(capsys, "The cat")
    assert code == 1
    assert "ended before" in err
