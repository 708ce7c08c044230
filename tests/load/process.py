"""Starts and observes a server in another process."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from tests.load.engine import RequestRecord

START_SECONDS = 300


@dataclass
class LoadServer:
    """A server process. ``bare_rate`` is in tokens/s, ``log`` is the output to stderr."""

    url: str
    bare_rate: float
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)

    def census(self) -> dict[str, float]:
        """Return its memory in MB, and its numbers of threads and descriptors."""
        seen = psutil.Process(self.process.pid)
        return {"rss_mb": seen.memory_info().rss / 2**20, "threads": seen.num_threads(), "fds": seen.num_fds()}

    async def state(self, http: httpx.AsyncClient) -> dict[str, Any]:
        """Return the numbers of running and waiting requests and of asyncio tasks."""
        found: dict[str, Any] = (await http.get("/v1/load/state")).json()
        return found

    async def served(self, http: httpx.AsyncClient) -> list[RequestRecord]:
        """Return the records of the last requests to the engine in the order of their arrival."""
        return [RequestRecord(**row) for row in (await http.get("/v1/load/state?served")).json()["served"]]


@contextmanager
def server(engine: str = "fake", **options: float) -> Iterator[LoadServer]:
    """Run a server with ``engine`` and the options of ``server.py``. At the end, it is killed if it still runs."""
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "tests.load.server", "--engine", engine, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    log: list[str] = []
    reader = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
    reader.start()
    late = threading.Timer(START_SECONDS, process.kill)
    late.start()
    try:
        words = process.stdout.readline().split()
        late.cancel()
        if len(words) != 2:
            process.wait(5)
            raise RuntimeError(f"The server did not start: {''.join(log[-5:])}")
        yield LoadServer(words[0], float(words[1]), process, log)
    finally:
        late.cancel()
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()


def exit_of(served: LoadServer, *signals: tuple[float, int]) -> tuple[float, int]:
    """Send signals, each given as (seconds after the one before, signal).

    Returns the seconds from the first signal to the exit, and the exit code.
    """
    start = time.monotonic()
    for pause, number in signals:
        time.sleep(pause)
        served.process.send_signal(number)
    code = served.process.wait(30)
    return time.monotonic() - start, code
