"""llama.cpp's child process: private, and gone when its parent is."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from granite_demo.errors import CorruptModelError, LoadCancelledError
from granite_demo.loading import llama_process
from granite_demo.loading.llama_process import UNIX_SOCKETS, LlamaProcess
from tests.engine.llama_engines import MISSING, server_options
from tests.gguf_files import TINY, granite, write

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
needs_unix_sockets = pytest.mark.skipif(not UNIX_SOCKETS, reason="there are no unix sockets")

HANGS = "import sys, time; sys.stdin.readline(); time.sleep(600)"
"""A child whose load never ends."""
PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from granite_demo.loading.llama_process import LlamaProcess
from tests.engine.llama_engines import server_options
process = LlamaProcess(server_options(Path(sys.argv[1])))
process.wait(lambda: False)
print(process._child.pid, process.options.socket, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A tiny model."""
    return write(tmp_path / "tiny.gguf", *granite(TINY))


@pytest.fixture
def process(file: Path) -> Iterator[LlamaProcess]:
    """A child that has loaded it."""
    process = LlamaProcess(server_options(file))
    process.wait(lambda: False)
    yield process
    process.close()


def ended(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def ends_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not ended(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return ended(pid)


@needs_unix_sockets
def test_nobody_else_reaches_it(process: LlamaProcess) -> None:
    process.warm_up()
    address = Path(process.options.socket)
    assert stat.S_IMODE(address.parent.stat().st_mode) == 0o700
    assert stat.S_ISSOCK(address.stat().st_mode)
    kinds = {connection.family for connection in psutil.Process(process._child.pid).net_connections("all")}
    assert kinds <= {socket.AF_UNIX}, "it listens on a port"
    process.close()
    assert not address.parent.exists()


def test_each_request_needs_the_key(process: LlamaProcess) -> None:
    transport = httpx.HTTPTransport(uds=process.options.socket if UNIX_SOCKETS else None)
    with httpx.Client(transport=transport, base_url=process.url, headers={"Connection": "close"}) as client:
        for path in ("/completion", "/tokenize", "/slots", "/props"):
            assert client.post(path, json={"prompt": [1], "content": "a"}).status_code in (401, 404), path
        assert client.post("/completion", json={"prompt": [1]}).status_code == 401
    assert process.options.key not in " ".join(psutil.Process(process._child.pid).cmdline())
    assert process.tokenize("he")


async def test_without_unix_sockets_it_is_a_port_of_this_machine(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_process, "UNIX_SOCKETS", False)
    process = LlamaProcess(server_options(file))
    try:
        process.wait(lambda: False)
        process.warm_up()
        assert process.tokenize("he")
        body = {"prompt": [1], "n_predict": 2, "stream": True}
        assert [line async for line in process.lines("/completion", body) if line.startswith(b"data: ")]
        ports = psutil.Process(process._child.pid).net_connections("inet")
        assert {port.laddr.ip for port in ports} == {"127.0.0.1"}
    finally:
        process.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_parent(file: Path, end: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT, str(file), str(Path(__file__).parents[2])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid, address = parent.stdout.readline().split()
        assert not ended(int(pid))
        parent.send_signal(end)
        parent.wait()
        assert ends_within(int(pid), 5)
    Path(address).unlink(missing_ok=True)
    Path(address).parent.rmdir()


def test_closed_it_is_gone_with_its_threads(process: LlamaProcess) -> None:
    pid = process._child.pid
    assert process.alive
    assert process.memory() > 2**20
    process.close()
    process.close()
    assert not process.alive
    assert process.memory() == 0
    assert ended(pid)
    assert not any(reader.is_alive() for reader in process._readers)


def test_a_load_is_cancelled_within_a_second(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_process, "SERVER_START", HANGS)
    process, cancelled = LlamaProcess(server_options(file)), threading.Event()
    timer = threading.Timer(0.2, cancelled.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(LoadCancelledError):
        process.wait(cancelled.is_set)
    assert time.monotonic() - start < 1.2
    assert ended(process._child.pid)
    timer.join()


def test_a_broken_file_has_a_reason(tmp_path: Path) -> None:
    metadata, tensors = granite(TINY)
    process = LlamaProcess(server_options(write(tmp_path / "broken.gguf", metadata, tensors[:-1])))
    with pytest.raises(CorruptModelError, match=r"llama\.cpp cannot load broken\.gguf: .*ffn_up.* not found\.$"):
        process.wait(lambda: False)
    assert not Path(process.options.socket).parent.exists()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its process ended with signal 11"),
        ("import os; os._exit(7)", "its process ended with code 7"),
        ("import sys; sys.exit('0.1 E it is broken.')", "it is broken"),
    ],
)
def test_a_child_that_dies_has_a_reason(file: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str) -> None:
    monkeypatch.setattr(llama_process, "SERVER_START", program)
    process = LlamaProcess(server_options(file))
    with pytest.raises(CorruptModelError, match=f"cannot load tiny.gguf: {reason}\\.$"):
        process.wait(lambda: False)


def test_it_is_out_of_reach_of_the_terminal(process: LlamaProcess) -> None:
    """Ctrl+C is for the page, which then ends the child in order."""
    assert os.getsid(process._child.pid) != os.getsid(0)
