"""Runs the server until a signal. Then answers end with a message, and connections close."""

import asyncio
import atexit
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil
import uvicorn

from granite_demo.backend import ManagedBackend
from granite_demo.errors import ConfigurationError, EngineError
from granite_demo.loading import gc as garbage
from granite_demo.server.connections import Config
from granite_demo.server.policy import Policy

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

GRACE_SECONDS = 4
"""Time for open connections to end after a signal."""
LAST_SECONDS, VERY_LAST_SECONDS = 6, 9
"""From a signal to the end of the process if something hangs: a load in a library cannot be cancelled. The second one
holds where busy threads starve Python's own. The documentation promises ten seconds.
"""
SWITCH_SECONDS = 0.0005
"""Between two switches of Python's threads. With the default of 5 ms, the work for a visitor delays the event loop, and
the thread that ends the server.
"""
REPEAT_SECONDS = 10.0
"""Between two lines of the log about the same kind of error."""
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


def serve(app: "FastAPI", backend: ManagedBackend, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Run until SIGINT or SIGTERM; a second signal ends the process at once. Raises EngineError if the engine fails.

    ``app`` is one of ``create_app``. ``announce`` is called when connections are accepted.
    """
    server = _Server(app, backend)
    garbage.settle()
    sys.setswitchinterval(min(SWITCH_SECONDS, sys.getswitchinterval()))
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
def running(app: "FastAPI", backend: ManagedBackend, port: int = 0) -> Iterator[str]:
    """Run the application on ``port``, by default a free one, in a thread for the length of the block.

    Yields its address.
    """
    listener = bind("127.0.0.1", port)
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


class LoopErrors:
    """Logs errors outside of a request, each kind once in a while.

    What asyncio itself would log quotes the values of tasks and callbacks, and without descriptors it repeats the line
    thousands of times a second.
    """

    def __init__(self) -> None:
        self._silent: dict[str, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log the error of ``context``, see ``loop.call_exception_handler``."""
        error: BaseException | None = context.get("exception")
        kind = type(error).__name__
        if loop.time() >= self._silent.get(kind, 0.0):
            self._silent[kind] = loop.time() + REPEAT_SECONDS
            log.error("An error outside of a request: %s.", kind, exc_info=error)


class _Server(uvicorn.Server):
    def __init__(self, app: "FastAPI", backend: ManagedBackend) -> None:
        config = Config(
            app,
            getattr(app.state, "policy", Policy()),
            log_config=None,  # uvicorn logs through the root logger
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        super().__init__(config)
        self._app = app
        self._backend = backend

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server in order, within ``LAST_SECONDS``; the second ends the process."""
        if self.should_exit:
            _exit(128 + sig)
        self.should_exit = True
        # This thread of C code needs no lock of Python. The children that it leaves end with their parent.
        faulthandler.dump_traceback_later(VERY_LAST_SECONDS, exit=True)
        last = threading.Timer(LAST_SECONDS, _exit, (0,))
        last.daemon = True
        last.start()

    async def run_on(self, listener: socket.socket, announce: Callable[[], None]) -> str:
        """Serve on ``listener`` until ``should_exit`` is set or the engine fails, then end in order.

        Returns the failure, empty if there is none.
        """
        asyncio.get_running_loop().set_exception_handler(LoopErrors())
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
