"""Tests the commands of README in a new read-only clone of root, as a user with an empty home folder."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.test_docker import UID, unprivileged

ROOT = Path(__file__).parents[2]
PYTHON = ".venv/bin/python"
README = (ROOT / "README.md").read_text(encoding="utf-8")
pytestmark = [
    pytest.mark.release,
    pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="only root can become another user"),
]


def command_of(heading: str) -> list[str]:
    """Return the command of README below ``heading`` after the installation, for this interpreter."""
    [line] = re.findall(rf"^## {heading}\n.*?^```sh\n(.*?)\n```", README, re.DOTALL | re.MULTILINE)
    python, *arguments = shlex.split(line.split(" && ")[-1])
    assert python == PYTHON
    return [sys.executable, *arguments]


@pytest.fixture
def clone() -> Iterator[tuple[Path, dict[str, str]]]:
    """Make a clone. Yield its folder, and the environment of its user."""
    place = Path(tempfile.mkdtemp())  # only root can read the folders of pytest
    place.chmod(0o755)
    folder = place / "clone"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", str(folder)], check=True)
    shutil.rmtree(folder / ".git")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555)
    for name in ("home", "tmp"):
        (place / name).mkdir()
        os.chown(place / name, UID, UID)
    kept = {name: value for name, value in os.environ.items() if name == "PATH" or name.startswith("PIP_")}
    yield folder, {**kept, "HOME": str(place / "home"), "TMPDIR": str(place / "tmp")}
    shutil.rmtree(place)


def test_app_fetches_the_sample_and_answers(clone: tuple[Path, dict[str, str]]) -> None:
    folder, environment = clone
    command = [*unprivileged(), *command_of("Start"), "--port", "0"]
    log = folder.parent / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stderr=output)
    try:
        deadline = time.monotonic() + 600
        while not (found := re.search(r"is at (http://\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        while (state := httpx.get(f"{found[1]}/health", timeout=60).json()["model"]) != "ready":
            assert state != "failed", log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        body = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
        assert "Paris" in httpx.post(f"{found[1]}/v1/completions", json=body, timeout=120).text
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
    assert {path.name for path in (folder.parent / "home").iterdir()} <= {".cache", ".config", ".local"}


def test_the_tests_pass(clone: tuple[Path, dict[str, str]]) -> None:
    """All of them, or those in GRANITE_DEMO_CLONE_TESTS."""
    folder, environment = clone
    command = [*unprivileged(), *command_of("Test"), *os.environ.get("GRANITE_DEMO_CLONE_TESTS", "").split()]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=5400)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
