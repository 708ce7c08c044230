"""Tests that a failed start has exit code 2 and names the flag or variable to change."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(*flags: str, **variables: str) -> tuple[int, str]:
    """Return the exit code and the output."""
    command = [sys.executable, "-m", "granite_demo", "serve", "--model", "sample", *flags]
    environment = {"PATH": os.environ["PATH"], "HOME": str(Path.home()), **variables}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    return run.returncode, " ".join(run.stderr.split())


def test_f20_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = start("--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "--port or GRANITE_DEMO_PORT" in said


@pytest.mark.parametrize(
    ("model", "variable", "named"),
    [
        pytest.param("sample", "HOME", "GRANITE_DEMO_CACHE", marks=pytest.mark.release),
        ("sample", "GRANITE_DEMO_CACHE", "GRANITE_DEMO_CACHE"),
        ("granite-4.0-350m", "HF_HOME", "HF_HOME"),
        pytest.param("auto", "HOME", "GRANITE_DEMO_CACHE", marks=pytest.mark.release),
    ],
)
def test_f20_a_folder_that_cannot_be_written(tmp_path: Path, model: str, variable: str, named: str) -> None:
    (tmp_path / "file").touch()  # a file cannot contain folders, also for root
    code, said = start("--port", "0", "--model", model, **{"HOME": str(tmp_path), variable: str(tmp_path / "file/x")})
    assert code == 2, said
    assert f"Set {named} to a writable folder" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param(("--port", "many"), "--port", marks=pytest.mark.release),
        (("--login", "nobody"), "--login takes NAME:PASSWORD"),
        pytest.param(("--device", "quantum"), "--device must be one of", marks=pytest.mark.release),
    ],
)
def test_f20_an_invalid_value(flags: tuple[str, ...], words: str) -> None:
    code, said = start(*flags, "--port", "0") if "--port" not in flags else start(*flags)
    assert code == 2
    assert words in said
