"""``score`` and ``compare``: what they send, print and write."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from granite_demo.cli.score import PRECISION_FLAGS, in_precision, to_request
from granite_demo.errors import ConfigurationError, ContextOverflowError
from granite_demo.settings import Settings
from granite_demo.types.comparison import ComparedSide, ComparedToken, Comparing, Comparison
from granite_demo.types.events import Queued, ScoreSummary
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.logprobs import ScoredToken, TokenAlternative
from granite_demo.types.requests import ScoreRequest
from tests.fakes import FakeBackend

Run = Callable[..., tuple[int, str, str]]

TOKENS = [
    ScoredToken(5, "The[b]\x1b"),
    ScoredToken(6, "\ncat", -0.5, None, 1.25, (TokenAlternative(6, "\ncat", -0.5), TokenAlternative(7, " dog", -2.0))),
]
SUMMARY = ScoreSummary(2, -0.5, 0.1)
RESULT = Comparison(
    tuple(
        ComparedToken(index, f" w{index},\n", index / 100, index % 2 == 0, -1.0, -1.5, " a", " b")
        for index in range(20)
    ),
    ComparedSide("bfloat16", (("Precision", "bfloat16", "asked for"),), 2 * 10**9, 1000.0, 50.0, 3.25),
    ComparedSide("nf4", (), None, 800.0, None, None),
)


@pytest.fixture(autouse=True)
def scores(backend: FakeBackend) -> None:
    backend.scores = [Queued(1), *TOKENS, SUMMARY]
    backend.comparison = [Comparing("bfloat16: reading", 0.1), Comparing("bfloat16: reading", 0.2), RESULT]


def test_score_prints_a_table_and_the_perplexity(backend: FakeBackend, opened: list[Settings], run: Run) -> None:
    code, out, err = run("score", "The cat", "--model", "sample")
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


def test_score_shows_alternatives_in_a_column(backend: FakeBackend, opened: list[Settings], run: Run) -> None:
    code, out, _ = run("score", "The cat", "--alternatives", "2", "--special-tokens")
    assert code == 0
    assert r"'\ncat' 0.61, ' dog' 0.14" in out
    assert backend.scored == [ScoreRequest("The cat", None, 2, True)]


def test_score_prints_json_of_standard_input(
    backend: FakeBackend, opened: list[Settings], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"The cat\n")))
    code, out, err = run("score", "-", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["total"] == {"tokens": 2, "logprob": -0.5, "seconds": 0.1, "perplexity": SUMMARY.perplexity}
    assert found["tokens"][0] == {"id": 5, "text": "The[b]\x1b", "logprob": None, "entropy": None, "alternatives": []}
    assert found["tokens"][1]["alternatives"][1] == {"id": 7, "text": " dog", "logprob": -2.0, "sampled": None}
    assert backend.scored[0].text == "The cat"


def test_a_text_that_cannot_be_scored_is_exit_code_one(backend: FakeBackend, opened: list[Settings], run: Run) -> None:
    backend.scores, backend.error = [], ContextOverflowError(11, 10)
    code, out, err = run("score", "The cat")
    assert (code, out) == (1, "")
    assert "11 tokens" in err
    backend.error = None
    code, _, err = run("score", "The cat")
    assert code == 1
    assert "ended before" in err


def test_compare_prints_both_sides_the_mean_and_the_worst(
    backend: FakeBackend, opened: list[Settings], run: Run
) -> None:
    code, out, err = run("compare", "Some text", "--model", "sample")
    assert (code, err) == (0, "bfloat16: reading")
    assert ["bfloat16", "2.00", "GB", "1,000", "tokens/s", "50.0", "tokens/s", "3.250"] in map(
        str.split, out.splitlines()
    )
    assert "KL divergence: 0.095 nats" in out
    assert "50.0% of 20 positions" in out
    worst = [line for line in out.splitlines() if line.startswith(r"' w")]
    assert [line.split()[1] for line in worst] == [rf"w{index},\n'" for index in range(19, 9, -1)]
    [request] = backend.compared
    assert (request.text, request.reference.dtype, request.reference.quantization) == ("Some text", "bfloat16", "none")
    assert (request.other.dtype, request.other.quantization) == ("auto", "nf4")
    # The first model to load is the reference itself.
    assert opened[0].load_options() == request.reference
    assert backend.closed.is_set()


def test_compare_writes_json_and_csv(backend: FakeBackend, opened: list[Settings], run: Run, tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    flags = ("--reference", "float32", "--other", "bfloat16", "--json", "--csv", str(file))
    code, out, _ = run("compare", "Some text", *flags)
    assert code == 0
    found = json.loads(out)
    assert found["mean_divergence"] == pytest.approx(0.095)
    assert found["reference"]["label"] == "bfloat16"
    assert found["tokens"][3]["divergence"] == 0.03
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 20
    assert json.loads(rows[1]["token"]) == " w1,\n"  # guarded as on the page
    assert float(rows[1]["kl_nats"]) == 0.01
    [request] = backend.compared
    assert (request.reference.dtype, request.other.dtype) == ("float32", "bfloat16")


def test_a_file_that_cannot_be_written_is_exit_code_one(opened: list[Settings], run: Run, tmp_path: Path) -> None:
    code, _, err = run("compare", "a b", "--csv", str(tmp_path / "no" / "x.csv"))
    assert code == 1
    assert "cannot be written" in err


def test_each_precision_is_one_of_load_options() -> None:
    assert PRECISION_FLAGS == ("bfloat16", "float16", "float32", "int8", "nf4", "fp4")
    made = {in_precision(Settings(), name, "--other").load_options() for name in PRECISION_FLAGS}
    assert len(made) == 6
    with pytest.raises(ConfigurationError):
        in_precision(Settings(), "none", "--other")


def test_an_automatic_choice_is_named() -> None:
    request = to_request("a b", LoadOptions("auto", dtype="float32", quantization="none"), "nf4", "sample")
    assert (request.reference.model, request.other.model) == ("sample", "sample")
