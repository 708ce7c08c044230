"""Two processes with a GPU each that share a model, and the page over them. ``-s`` shows the times."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.gpu.checkpoints import write_small
from tests.loading.test_tensor_parallel import ROOT, ends, processes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="it takes two GPUs"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("group")
    write_small(folder / "model")
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, Any]:
    with processes("tests.gpu.group_worker", str(folder)) as started:
        for code, text in ends(started):
            assert code == 0, text[-3000:]
    found: dict[str, Any] = json.loads((folder / "answers.json").read_text())
    return found


def test_greedy_in_float32_equals_one_process(answers: dict[str, Any]) -> None:
    assert answers["two"] == answers["one"]
    assert all(len(set(ids)) > 20 for ids in answers["one"]), "answers of one token prove nothing"


def test_a_cancel_frees_both_within_a_second(answers: dict[str, Any]) -> None:
    print(f"idle after {answers['idle']} s")
    assert max(answers["idle"]) < 1


class Site:
    """The page over two processes, on a free port."""

    def __init__(self, model: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.running = processes("granite_demo", "serve", "--port", str(self.port), "--model", str(model))
        self.started = self.running.__enter__()
        lines = self.started[0].stderr
        assert lines is not None
        begun, output = time.perf_counter(), ""
        for line in lines:
            output += line
            if "granite-demo is at" in line:
                break
        else:
            raise AssertionError(output)
        print(f"the page is there after {time.perf_counter() - begun:.1f} s")
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def gauge(self, name: str) -> float:
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(name):
                return float(line.split()[-1])
        raise AssertionError(f"no {name} in /metrics")


@pytest.fixture
def site(folder: Path) -> Iterator[Site]:
    site = Site(folder / "model")
    try:
        yield site
    finally:
        site.http.close()
        site.running.__exit__(None, None, None)


def body(tokens: int, stream: bool = False) -> dict[str, Any]:
    messages = [{"role": "user", "content": "w5 w6 w7"}]
    return {"model": "default", "messages": messages, "max_tokens": tokens, "stream": stream, "temperature": 0}


def test_a_chat_a_stop_and_sigterm(site: Site) -> None:
    answered = site.http.post("/v1/chat/completions", json=body(50)).json()
    assert answered["usage"]["completion_tokens"] > 0, answered
    with site.http.stream("POST", "/v1/chat/completions", json=body(3000, stream=True)) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith("data"))
        for _ in range(20):
            next(lines)
        running = site.gauge("granite_demo_requests_running")
    begun = time.perf_counter()
    while site.gauge("granite_demo_requests_running") or busiest_gpu() > 5:
        time.sleep(0.02)
        assert time.perf_counter() - begun < 5
    print(f"both idle {time.perf_counter() - begun:.2f} s after the client left")
    assert running == 1
    begun = time.perf_counter()
    site.started[0].send_signal(signal.SIGTERM)
    (first, _), (second, _) = ends(site.started)
    print(f"SIGTERM ended both after {time.perf_counter() - begun:.1f} s")
    assert (first, second) == (0, 0)


def busiest_gpu() -> float:
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    return max(float(line) for line in subprocess.run(query, capture_output=True, text=True).stdout.split())


def test_a_killed_process_ends_the_page_with_a_message(site: Site) -> None:
    with site.http.stream("POST", "/v1/chat/completions", json=body(3000, stream=True)) as stream:
        next(stream.iter_lines())
        site.started[1].kill()
        begun = time.perf_counter()
        (first, why), _ = ends(site.started)
    print(
        f"the first ended {time.perf_counter() - begun:.1f} s after the second was killed, with {first}: {why[-300:]}"
    )
    assert first == 1
    assert "Process 1 of 2 ends." in why


def test_torchrun_ends_when_a_process_is_killed(folder: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend=c10d"]
    command = [*torchrun, "--rdzv-endpoint=127.0.0.1:0", "-m", "granite_demo", "serve", "--port", "0"]
    run = subprocess.Popen(
        [*command, "--model", str(folder / "model")], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert run.stderr is not None
    try:
        output = ""
        for line in run.stderr:
            output += line
            if "granite-demo is at" in line:
                break
        else:
            raise AssertionError(output)
        children = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()
        os.kill(int(children[-1]), signal.SIGKILL)
        begun = time.perf_counter()
        run.communicate(timeout=60)
        print(f"torchrun ended after {time.perf_counter() - begun:.1f} s with {run.returncode}")
        assert run.returncode not in (0, None)
    finally:
        run.kill()
        run.wait()
