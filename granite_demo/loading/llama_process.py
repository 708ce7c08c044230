"""Starts llama.cpp's child process, waits for its model, and ends it."""

import asyncio
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h11
import httpx

from granite_demo.errors import CorruptModelError, LoadCancelledError
from granite_demo.loading.llama_server import READY, SERVER_START, ServerOptions

log = logging.getLogger(__name__)

LLAMA_POLL_SECONDS = 0.05
CHILD_CONNECT_SECONDS = 5.0
CHUNK_BYTES = 64 * 1024
LOG_LINES = 20
"""The last lines of llama.cpp's log that are kept, to say why it ended."""
UNIX_SOCKETS = hasattr(socket, "AF_UNIX") and os.name == "posix"


class LlamaProcess:
    """One child process. ``close`` ends it at any time; an object is used once."""

    def __init__(self, options: ServerOptions) -> None:
        """``options`` without an address and a key: both are made here."""
        self._folder = tempfile.mkdtemp(prefix="granite-")  # only this user may enter it
        address = str(Path(self._folder, "llama.sock")) if UNIX_SOCKETS else "127.0.0.1"
        self.options = replace(options, socket=address, key=secrets.token_urlsafe(24))
        self._address = ""
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        pipe = subprocess.PIPE
        command = [sys.executable, "-P", "-c", SERVER_START, str(Path(__file__).parents[2])]
        self._child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
        )
        self._ready = threading.Event()
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_output, self._read_log)]
        for reader in self._readers:
            reader.start()
        with suppress(OSError):  # the child ended: its log says why
            assert self._child.stdin is not None
            self._child.stdin.write(f"{json.dumps(asdict(self.options))}\n")
            self._child.stdin.flush()

    @property
    def alive(self) -> bool:
        """Whether the child still runs."""
        return self._child.poll() is None

    def wait(self, cancelled: Callable[[], bool]) -> None:
        """Return when the model is loaded. Raises CorruptModelError with llama.cpp's reason, and LoadCancelledError."""
        while not self._ready.wait(LLAMA_POLL_SECONDS):
            if cancelled():
                self.close()
                raise LoadCancelledError("The load was cancelled.")
            if not self.alive:
                self.close()
                raise CorruptModelError(f"llama.cpp cannot load {Path(self.options.path).name}: {self.reason()}.")

    def reason(self) -> str:
        """Why the child ended, as far as its log says."""
        for reader in self._readers:
            reader.join(1.0)
        errors = [line.split(" E ", 1)[1] for line in self._log if " E " in line]
        if errors:
            return errors[0].strip().rstrip(".")
        code = self._child.poll()
        return f"its process ended with signal {-code}" if code and code < 0 else f"its process ended with code {code}"

    def tokenize(self, text: str) -> list[int]:
        """The token ids of ``text`` by llama.cpp; what spells a control token is one."""
        return list(self._post("/tokenize", {"content": text, "parse_special": True})["tokens"])

    def warm_up(self) -> None:
        """Compute one token, which reads the weights from the disk."""
        self._post("/completion", {"prompt": [0], "n_predict": 1, "cache_prompt": False})

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        transport = httpx.HTTPTransport(uds=self.options.socket if UNIX_SOCKETS else None, verify=False)
        timeout = httpx.Timeout(None, connect=CHILD_CONNECT_SECONDS)
        with httpx.Client(transport=transport, base_url=self.url, headers=self.headers, timeout=timeout) as client:
            return client.post(path, json=body).raise_for_status().json()

    @property
    def url(self) -> str:
        """The address of the child; with a unix socket, its name only."""
        return "http://llama.cpp" if UNIX_SOCKETS else self._address

    @property
    def headers(self) -> dict[str, str]:
        """What each request carries. A kept connection would be closed after a stream without notice."""
        return {"Authorization": f"Bearer {self.options.key}", "Connection": "close"}

    async def lines(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[bytes]:
        """Post ``body`` and yield the lines of the reply as they arrive. Closing it cancels the request.

        Raises OSError or h11.RemoteProtocolError where the child ends. httpx would take 0.7 ms of processor time for
        each token instead of 0.4 ms, and here the processor also computes the answer.
        """
        url, data = urlsplit(self.url), json.dumps(body).encode()
        headers = {**self.headers, "Host": url.netloc, "Content-Type": "application/json", "Content-Length": len(data)}
        async with asyncio.timeout(CHILD_CONNECT_SECONDS):
            if UNIX_SOCKETS:
                reader, writer = await asyncio.open_unix_connection(self.options.socket)
            else:
                reader, writer = await asyncio.open_connection(url.hostname, url.port)
        try:
            http = h11.Connection(h11.CLIENT)
            head = h11.Request(method="POST", target=path, headers=[(name, f"{headers[name]}") for name in headers])
            writer.writelines(filter(None, map(http.send, (head, h11.Data(data=data), h11.EndOfMessage()))))
            rest = b""
            while type(event := http.next_event()) is not h11.EndOfMessage:
                if event is h11.NEED_DATA:
                    http.receive_data(await reader.read(CHUNK_BYTES))
                elif isinstance(event, h11.Data):
                    *lines, rest = (rest + event.data).split(b"\n")
                    for line in lines:
                        yield line
            yield rest
        finally:
            writer.close()

    def close(self) -> None:
        """End the child and wait for its end."""
        self._child.kill()
        self._child.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self._child.stdin, self._child.stdout, self._child.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def memory(self) -> int:
        """Bytes of memory that the child takes (resident set size); 0 where it has ended."""
        import psutil

        with suppress(psutil.Error):
            return int(psutil.Process(self._child.pid).memory_info().rss)
        return 0

    def _read_output(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            word, _, address = line.strip().partition(" ")
            if word == READY:
                self._address = address
                self._ready.set()

    def _read_log(self) -> None:
        assert self._child.stderr is not None
        for line in self._child.stderr:
            self._log.append(line.rstrip())
            log.debug("llama.cpp: %s", line.rstrip())
