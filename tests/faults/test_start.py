"""A start that cannot work ends with code 2 and says which flag or variable to change."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(*flags: str, **variables: str) -> tuple[int, str]:
    """The exit code and what was said."""
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
    ("flags", "words"),
    [
        (("--port", "many"), "--port"),
        (("--login", "nobody"), "--login takes NAME:PASSWORD"),
        (("--device", "quantum"), "--device must be one of"),
    ],
)
def test_f20_a_value_that_cannot_be(flags: tuple[str, ...], words: str) -> None:
    code, said = start(*flags, "--port", "0") if "--port" not in flags else start(*flags)
    assert code == 2
    assert words in said
