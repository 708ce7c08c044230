"""Serves the application until a signal, then ends in order: answers get their message, then connections close."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from granite_demo.backends import Backend
from granite_demo.errors import ConfigurationError

GRACE_SECONDS = 5
"""Time that open connections get to end after a signal."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host`` and ``port``; 0 takes any free port. Raises ConfigurationError."""
    try:
        return socket.create_server((host, port), family=_family(host))
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {host} port {port}: {error.strerror or error}. "
            "Choose another with --port or GRANITE_DEMO_PORT."
        ) from error


def serve(app: FastAPI, backend: Backend, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Run until SIGINT or SIGTERM. ``announce`` is called when connections are accepted."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS)
    server = _Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)

    async def run() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.02)
        if server.started:
            announce()
        while not server.should_exit and not serving.done():
            await asyncio.sleep(0.1)
        # Gradio's heartbeats never end by themselves and would use up the whole grace period.
        app.state.blocks.app.stop_event.set()
        await asyncio.to_thread(backend.close)
        await serving

    asyncio.run(run())


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to ``serve``: uvicorn would raise them again at the end, and the exit code would be one."""
        yield


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
