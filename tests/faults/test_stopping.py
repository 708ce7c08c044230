"""Tests that a process ends quickly after a signal, with all child processes."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.faults.site import LONG, wait_until

ROOT = Path(__file__).parents[2]
SERVER = """
import atexit, os, signal, subprocess, sys, threading, time
from pathlib import Path
import granite_demo.cli.composition as cli
from granite_demo.cli.main import main
from tests.faults.site import Faults, loader_of

load = loader_of(Path(sys.argv[1]), lambda loaded: Faults(loaded).slow(0.03))

def open_model(cache, threads, options, report, cancelled, **rest):
    subprocess.Popen(["sleep", "600"])  # a child process that is not stopped
    if sys.argv[2] == "hangs":
        time.sleep(600)
    return load(options, report, cancelled)

def get_busy(*_):
    for _ in range(40):
        threading.Thread(target=spin, daemon=True).start()

def spin():
    while True:
        sum(range(10_000))

signal.signal(signal.SIGUSR1, get_busy)
atexit.register(os._exit, 3)  # the start of the shutdown of Python
cli.open_model = open_model
main(["serve", "--port", "0", "--model", sys.argv[1]])
"""


@contextmanager
def server(folder: Path, load: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Start a process whose load ``works`` or ``hangs``. Yield it and its address. SIGUSR1 starts busy threads."""
    command = [sys.executable, "-c", SERVER, str(folder), load]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    children: list[psutil.Process] = []
    try:
        found = (re.search(r"is at (http://\S+)", line) for line in process.stderr)
        url = next(match[1] for match in found if match)
        wait_until(lambda: psutil.Process(process.pid).children(), 30)
        children = psutil.Process(process.pid).children(recursive=True)
        if load == "works":
            wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200, 30)
        yield process, url
        _, alive = psutil.wait_procs(children, timeout=2)
        assert not alive
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        for child in children:
            if child.is_running():
                child.kill()


def test_f19_running_answers_get_a_message_and_the_exit_is_clean(tiny_folder: Path) -> None:
    lines: list[str] = []

    def listen(url: str) -> None:
        with httpx.stream("POST", f"{url}/v1/completions", json=LONG, timeout=30) as answer:
            lines.extend(line for line in answer.iter_lines() if line)

    with server(tiny_folder, "works") as (process, url):
        thread = threading.Thread(target=listen, args=(url,))
        thread.start()
        wait_until(lambda: 'first_token_seconds_count{source="api"} 1.0' in httpx.get(f"{url}/metrics").text, 10)
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        statuses = set()
        while process.poll() is None and time.monotonic() - started < 10:
            try:
                statuses.add(httpx.post(f"{url}/v1/completions", json={**LONG, "stream": False}).status_code)
            except httpx.TransportError:  # the port is closed
                time.sleep(0.05)
        assert process.wait(max(0.1, started + 10 - time.monotonic())) == 0
        assert statuses <= {503}
        thread.join(5)
    assert "the server is stopping" in lines[-2]
    assert lines[-1] == "data: [DONE]"


@pytest.mark.release
def test_f19_a_second_signal_ends_the_process_immediately(tiny_folder: Path) -> None:
    with server(tiny_folder, "hangs") as (process, _):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(1.5) == 128 + signal.SIGTERM


@pytest.mark.release
def test_f19_a_load_that_hangs_does_not_delay_the_exit(tiny_folder: Path) -> None:
    with server(tiny_folder, "hangs") as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.release
def test_l3_busy_threads_do_not_delay_the_exit(tiny_folder: Path) -> None:
    with server(tiny_folder, "works") as (process, _):
        process.send_signal(signal.SIGUSR1)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, 1)
