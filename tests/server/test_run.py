"""Listening, and the whole process from start to signal."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]
from starlette.responses import PlainTextResponse
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from granite_demo.errors import ConfigurationError
from granite_demo.server.run import bind

ROOT = Path(__file__).parents[2]


def test_a_port_in_use_names_the_flag_and_the_variable() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"{port}.*--port or GRANITE_DEMO_PORT"):
            bind("127.0.0.1", port)


def test_small_pieces_of_a_stream_are_sent_at_once() -> None:
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="192.0.2.1"):
        bind("192.0.2.1", 0)


@pytest.mark.parametrize("service", ["cpu", "gpu", "page"])
async def test_behind_a_proxy_of_the_docker_host_visitors_are_distinguished(service: str) -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    proxies = compose["services"][service]["environment"]["GRANITE_DEMO_TRUSTED_PROXIES"]

    async def tell(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse(scope["client"][0])(scope, receive, send)

    async def seen(peer: str) -> str:
        app: Any = ProxyHeadersMiddleware(tell, proxies)
        transport = httpx.ASGITransport(app, client=(peer, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            return (await http.get("/", headers={"x-forwarded-for": "198.51.100.7, 203.0.113.9"})).text

    assert await seen("172.18.0.1") == "203.0.113.9"
    assert await seen("203.0.113.5") == "203.0.113.5"


LIST_MODULES = """
import sys
from granite_demo.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("Imported:", *sys.modules, file=sys.stderr, flush=True)
"""


@contextmanager
def app(*flags: str, program: tuple[str, ...] = ("app.py",)) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """``python app.py`` as a user starts it, and the lines it writes."""
    command = [sys.executable, *program, "--port", "0", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lines.extend, args=(process.stderr,))
    reader.start()
    try:
        yield process, lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


def address(lines: list[str], seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := re.search(r"granite-demo is at (http://\S+)", "".join(lines)):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(f"no address in {lines}")


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_app_prints_its_address_serves_the_sample_and_ends_on_a_signal(gguf_path: Path, stop: signal.Signals) -> None:
    with app("--model", "sample") as (process, lines):
        url = address(lines)
        assert url.startswith("http://127.0.0.1:")
        deadline = time.monotonic() + 180
        while httpx.get(f"{url}/health").json()["model"] != "ready":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with httpx.stream("GET", f"{url}/gradio_api/heartbeat/tab", timeout=10) as heartbeat:
            signs_of_life = heartbeat.iter_bytes()  # dropped, it would close the connection
            next(signs_of_life)
            # An open page must not keep the process alive.
            process.send_signal(stop)
            assert process.wait(20) == 0
    text = "".join(lines)
    assert "SmolLM2 135M sample (not an IBM model) is ready." in re.sub(r"\s+", " ", text)
    assert "Traceback" not in text


@pytest.mark.release
def test_neither_the_page_nor_an_answer_needs_torch(gguf_path: Path) -> None:
    question = {"role": "user", "content": "What is the capital of Germany?"}
    asked = {"model": "sample", "messages": [question], "max_tokens": 24, "temperature": 0}
    with app("--model", "sample", program=("-c", LIST_MODULES, "serve")) as (process, lines):
        with httpx.Client(base_url=address(lines), timeout=120) as http:
            assert http.get("/").is_success
            answered = http.post("/v1/chat/completions", json=asked).json()
        assert "Berlin" in answered["choices"][0]["message"]["content"]
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    imported = next(line.split() for line in lines if line.startswith("Imported:"))
    assert "gradio" in imported
    assert not {"torch", "transformers", "accelerate", "bitsandbytes"} & set(imported)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--model", "no-such-model"), 1, "There is no model 'no-such-model'"),
        (("--device", "toaster"), 2, "--device must be one of auto, cuda, mps, cpu"),
        (("--port", "99999"), 2, "--port must be between 0 and 65535"),
    ],
)
def test_a_mistake_is_reported_immediately_without_a_traceback(flags: tuple[str, str], code: int, message: str) -> None:
    command = [sys.executable, "app.py", "--port", "0", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert message in re.sub(r"\s+", " ", done.stderr)
    assert "Traceback" not in done.stderr
