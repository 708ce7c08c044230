"""A server in another process, as those who measure it see it."""

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

from tests.load.engine import Served

START_SECONDS = 300


@dataclass
class Loaded:
    """The server's address and process; ``bare_rate`` in tokens/s, ``log`` is what it wrote to stderr."""

    url: str
    bare_rate: float
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)

    def census(self) -> dict[str, float]:
        """What it holds: MB of memory, threads and descriptors."""
        seen = psutil.Process(self.process.pid)
        return {"rss_mb": seen.memory_info().rss / 2**20, "threads": seen.num_threads(), "fds": seen.num_fds()}

    async def state(self, http: httpx.AsyncClient) -> dict[str, Any]:
        """What runs, waits, and how many asyncio tasks there are."""
        found: dict[str, Any] = (await http.get("/load/state")).json()
        return found

    async def served(self, http: httpx.AsyncClient) -> list[Served]:
        """What became of the last requests to the engine, in the order of their arrival."""
        return [Served(**row) for row in (await http.get("/load/state?served")).json()["served"]]


@contextmanager
def server(engine: str = "fake", **options: float) -> Iterator[Loaded]:
    """A server over ``engine``, with the options of ``server.py``; killed at the end if it still runs."""
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
        told = process.stdout.readline().split()
        late.cancel()
        if len(told) != 2:
            process.wait(5)
            raise RuntimeError(f"The server did not start: {''.join(log[-5:])}")
        yield Loaded(told[0], float(told[1]), process, log)
    finally:
        late.cancel()
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()


def exit_of(served: Loaded, *signals: tuple[float, int]) -> tuple[float, int]:
    """Send each (seconds after the one before, signal); seconds from the first to the exit, and the exit code."""
    start = time.monotonic()
    for pause, number in signals:
        time.sleep(pause)
        served.process.send_signal(number)
    code = served.process.wait(30)
    return time.monotonic() - start, code
