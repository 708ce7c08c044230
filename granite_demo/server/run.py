"""Runs the server until a signal. Then answers end with a message, and connections close."""

import asyncio
import atexit
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil
import uvicorn
from fastapi import FastAPI

from granite_demo.backend import ManagedBackend
from granite_demo.errors import ConfigurationError, EngineError
from granite_demo.loading import gc as garbage
from granite_demo.settings import PROXIES

GRACE_SECONDS = 4
"""Time for open connections to end after a signal."""
LAST_SECONDS = 8
"""From a signal to the end of the process if something hangs: a load in a library cannot be cancelled.

The documentation promises ten seconds.
"""
FAILED_SECONDS = 5
"""From a failure of the engine to the end of the process, for /health and the readers to see it."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host`` and ``port``; 0 is any free port. Raises ConfigurationError."""
    try:
        listener = socket.create_server((host, port), family=_family(host))
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {host} port {port}: {error.strerror or error}. "
            "Choose another port with --port or GRANITE_DEMO_PORT."
        ) from error
    # Connections inherit this option. asyncio sets it only for listeners of its own; without it each small piece of a
    # stream waits up to 40 ms for the acknowledgement of the piece before.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(
    app: FastAPI, backend: ManagedBackend, listener: socket.socket, announce: Callable[[], None], proxies: str = PROXIES
) -> None:
    """Run until SIGINT or SIGTERM; a second signal ends the process at once. Raises EngineError if the engine fails.

    ``announce`` is called when connections are accepted. ``proxies``: comma-separated addresses of trusted proxies,
    whose X-Forwarded-For header names the visitor.
    """
    server = _Server(app, backend, proxies)
    garbage.settle()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    try:
        failure = asyncio.run(server.run_on(listener, announce))
    finally:
        _end_children()
    if failure:
        raise EngineError(failure)
    # Everything is closed. Skip Python's own clean-up, which takes seconds, most of them in torch.
    atexit.register(_exit, 0)


@contextmanager
def running(app: FastAPI, backend: ManagedBackend) -> Iterator[str]:
    """Run the application on a free port in a thread, for the length of the block. Yields its address."""
    listener = bind("127.0.0.1", 0)
    server = _Server(app, backend)
    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(server.run_on(listener, ready.set)), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield address(listener)
    finally:
        server.should_exit = True
        thread.join()


def address(listener: socket.socket) -> str:
    """The address of the page on ``listener``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    def __init__(self, app: FastAPI, backend: ManagedBackend, proxies: str = PROXIES) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,  # uvicorn logs through the root logger
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            forwarded_allow_ips=proxies,
        )
        super().__init__(config)
        self._app = app
        self._backend = backend

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server in order, within ``LAST_SECONDS``; the second ends the process."""
        if self.should_exit:
            _exit(128 + sig)
        self.should_exit = True
        last = threading.Timer(LAST_SECONDS, _exit, (0,))
        last.daemon = True
        last.start()

    async def run_on(self, listener: socket.socket, announce: Callable[[], None]) -> str:
        """Serve on ``listener`` until ``should_exit`` is set or the engine fails, then end in order.

        Returns the failure, empty if there is none.
        """
        serving = asyncio.create_task(self.serve(sockets=[listener]))
        while not self.started and not serving.done():
            await asyncio.sleep(0.02)
        announce()
        failure = await self._end_of(serving)
        from granite_demo.ui.gradio_patches.sessions import end_heartbeats  # later than ``bind``: Gradio takes seconds

        end_heartbeats(self._app.state.page)
        await asyncio.to_thread(self._backend.close)
        await serving
        return failure

    async def _end_of(self, serving: "asyncio.Task[None]") -> str:
        failed_at: float | None = None
        while not self.should_exit and not serving.done():
            await asyncio.sleep(0.1)
            engine = self._backend.status().engine
            if engine and engine.failure:
                failed_at = failed_at or time.monotonic()
                # Only a new process can use a lost GPU again: the supervisor of this one starts it.
                if time.monotonic() - failed_at > FAILED_SECONDS:
                    self.should_exit = True
                    return engine.failure
        return ""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to ``serve``: uvicorn would raise them again at the end, with exit code 1."""
        yield


def _exit(code: int) -> None:
    """End now, without exit handlers: one of them can be what hangs."""
    _end_children()
    os._exit(code)


def _end_children() -> None:
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
