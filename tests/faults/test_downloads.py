"""Tests that a download continues after its process was killed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.fakehub import FakeHub
from tests.faults.site import GREEDY, wait_until

ROOT = Path(__file__).parents[2]
WEIGHTS = "model.safetensors"


@contextmanager
def started(hub: FakeHub, home: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Start a server whose model is on ``hub``. Yield the process and the address."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment = {**kept, "HOME": str(home), "HF_HOME": str(home / "hub"), "HF_ENDPOINT": hub.url}
    command = [sys.executable, "-m", "granite_demo", "serve", "--port", "0", "--device", "cpu"]
    command += ["--model", "granite-4.0-350m"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        yield process, next(line.split()[3] for line in process.stderr if "granite-demo is at" in line)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.release
def test_f19_after_a_kill_in_a_download_the_next_start_works(tiny_folder: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in tiny_folder.iterdir()}
    with FakeHub() as hub:
        hub.add("ibm-granite/granite-4.0-350m", files)
        hub.stall[WEIGHTS] = len(files[WEIGHTS]) // 2
        with started(hub, tmp_path) as (process, _):
            wait_until(lambda: [one for one in hub.transfers(WEIGHTS) if one.sent], 60)
            process.kill()
        wait_until(lambda: hub.transfers(WEIGHTS)[0].ended, 10)  # the download has stopped
        hub.stall.clear()
        with started(hub, tmp_path) as (_, url):
            wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200, 60)
            assert httpx.post(f"{url}/v1/completions", json=GREEDY, timeout=30).status_code == 200
