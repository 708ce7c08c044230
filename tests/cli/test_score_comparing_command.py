"""``compare``: what is asked for, what is printed and written, and the exit codes."""

import csv
import json
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from rich.console import Console

from granite_demo.cli import main as cli
from granite_demo.cli.main import main
from granite_demo.cli.score import PRECISION_FLAGS, in_precision, to_request
from granite_demo.errors import ConfigurationError
from granite_demo.settings import Settings
from granite_demo.types.comparison import ComparedSide, ComparedToken, Comparing, Comparison
from granite_demo.types.load_options import LoadOptions
from tests.fakes import FakeBackend

RESULT = Comparison(
    tuple(
        ComparedToken(index, f" w{index},\n", index / 100, index % 2 == 0, -1.0, -1.5, " a", " b")
        for index in range(20)
    ),
    ComparedSide("bfloat16", (("Precision", "bfloat16", "asked for"),), 2 * 10**9, 1000.0, 50.0, 3.25),
    ComparedSide("nf4", (), None, 800.0, None, None),
)


@pytest.fixture
def opened(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that a fake backend was opened with."""
    found: list[Settings] = []

    def open_fake(settings: Settings, console: Console) -> FakeBackend:
        found.append(settings)
        return backend

    monkeypatch.setattr(cli, "ready_backend", open_fake)
    backend.comparison = [Comparing("bfloat16: reading", 0.1), Comparing("bfloat16: reading", 0.2), RESULT]
    return found


def compare(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["compare", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, " ".join(err.split())


def test_both_sides_the_mean_and_the_worst(
    backend: FakeBackend, opened: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = compare(capsys, "Some text", "--model", "sample")
    assert (code, err) == (0, "bfloat16: reading")
    assert ["bfloat16", "2.00", "GB", "1,000", "tokens/s", "50.0", "tokens/s", "3.250"] in map(
        str.split, out.splitlines()
    )
    assert "KL divergence 0.095 nats" in out
    assert "50.0% of 20 places" in out
    worst = [line for line in out.splitlines() if line.startswith(r"' w")]
    assert [line.split()[1] for line in worst] == [rf"w{index},\n'" for index in range(19, 9, -1)]
    [request] = backend.compared
    assert (request.text, request.reference.dtype, request.reference.quantization) == ("Some text", "bfloat16", "none")
    assert (request.other.dtype, request.other.quantization) == ("auto", "nf4")
    # What is loaded first is the reference itself.
    assert opened[0].load_options() == request.reference
    assert backend.closed.is_set()


def test_json_and_csv(
    backend: FakeBackend, opened: list[Settings], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "out.csv"
    code, out, _ = compare(
        capsys, "Some text", "--reference", "float32", "--other", "bfloat16", "--json", "--csv", str(file)
    )
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


def test_what_json_cannot_write_is_null(
    backend: FakeBackend, opened: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    token = ComparedToken(1, "a", inf, False, -1.0, -inf, " a", " b")
    backend.comparison = [replace(RESULT, tokens=(token,))]
    _, out, _ = compare(capsys, "Some text", "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert found["mean_divergence"] is None
    assert (found["tokens"][0]["divergence"], found["tokens"][0]["other"]) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("a", "--other", "int4"), "must be one of bfloat16, float16, float32, int8, nf4, fp4"),
        (("a", "--reference", "auto"), "--reference"),
        (("a", "--reference", "nf4"), "the same"),
        (("",), "no text"),
        (("a", "--url", "http://127.0.0.1:1"), "--url cannot be used here"),
    ],
)
def test_mistakes_are_exit_code_two(
    opened: list[Settings], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], word: str
) -> None:
    code, out, err = compare(capsys, *arguments)
    assert (code, out) == (2, "")
    assert word in err
    assert not opened


def test_a_file_that_cannot_be_written_is_told(
    opened: list[Settings], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = compare(capsys, "a b", "--csv", str(tmp_path / "no" / "x.csv"))
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
