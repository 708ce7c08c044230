"""Tests for the outputs of a report."""

import json
from pathlib import Path

import pytest

from granite_demo.bench import output
from granite_demo.bench.options import BenchOptions
from granite_demo.errors import ConfigurationError
from tests.bench.made_up import report


def test_tables_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    output.write(report(), BenchOptions())
    assert "Made-up Granite" in capsys.readouterr().out


def test_json_alone_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    output.write(report(), BenchOptions(json_file="-"))
    assert json.loads(capsys.readouterr().out)["model"]["title"] == "Made-up Granite"


def test_files_beside_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    output.write(report(), BenchOptions(json_file=str(out), plot_file=picture))
    assert json.loads(out.read_text(encoding="utf-8"))["schema"] == 1
    assert picture.stat().st_size > 1000
    assert "Made-up Granite" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_raises_after_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written"):
        output.write(report(), BenchOptions(json_file=str(tmp_path)))
    assert "Made-up Granite" in capsys.readouterr().out
