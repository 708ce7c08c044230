"""Tests that a request gets the error of its model, and that the next request gets an answer."""

import gc
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch

from granite_demo.engine import protocol
from granite_demo.server import run
from tests.faults.site import CHAT, LONG, Faults, Site, loader_of, serving, unharmed, wait_until

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def error_of(site: Site, at: int) -> str:
    """Return the text of the error, after the text that was generated before pass number ``at``."""
    text = site.http.post("/v1/completions", json=LONG).text
    assert (text.count('"text":"') >= 1) == (at > 1)  # the text so far is kept
    assert text.rstrip().endswith("[DONE]") or "error" in text
    return text


@pytest.mark.parametrize("at", [1, 5])
def test_f07_out_of_memory_is_an_error_and_the_next_request_works(site: Site, faults: Faults, at: int) -> None:
    with unharmed(site):
        faults.raises(OUT_OF_MEMORY, at)
        assert "Use a shorter prompt or fewer new tokens" in error_of(site, at)


@pytest.mark.parametrize("at", [1, 5])
def test_f07_the_memory_of_a_request_that_failed_is_given_back(
    site: Site, faults: Faults, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol.log, "disabled", True)  # pytest keeps log records, and thus the frames of the error
    with unharmed(site):
        faults.raises(torch.OutOfMemoryError("CUDA out of memory."), at)
        error_of(site, at)
        caches = list(faults.caches)
        faults.clear()  # drops the reference to the error
        gc.collect()
        assert [cache() for cache in caches] == [None] * at


def test_f07_the_page_keeps_the_text_so_far(site: Site, faults: Faults) -> None:
    with unharmed(site):
        faults.raises(OUT_OF_MEMORY, 5)
        site.join("full")
        messages = str(list(site.messages_to("full")))
        assert "Use a shorter prompt or fewer new tokens" in messages
        assert "w63" in messages


def test_f08_a_lost_gpu_ends_all_requests_then_the_server(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "FAILED_SECONDS", 3)
    kept: list[Faults] = []
    with serving(loader_of(tiny_folder, lambda loaded: kept.append(Faults(loaded)))) as site:
        # There are two requests more than slots, so two wait in the queue.
        kept[0].slow(0.05)
        with httpx.Client(base_url=site.url) as http:
            waiting = [site.send("/v1/chat/completions", {**CHAT, "stream": True}) for _ in range(6)]
            wait_until(lambda: (engine := site.backend.status().engine) and engine.waiting == 2, 10)
            kept[0].raises(torch.AcceleratorError("CUDA error: device-side assert triggered"), 1)
            wait_until(lambda: http.get("/health").status_code == 503, 2)
            assert http.get("/health").json()["status"] == "dead"
            assert "The GPU has failed" in http.post("/v1/chat/completions", json=CHAT).text
            for connection in waiting:
                connection.settimeout(10)
                with connection, connection.makefile("rb") as answer:
                    assert any(b"The GPU has failed" in line for line in answer)
            # A supervisor can start the next process only after this one has ended.
            with pytest.raises(httpx.TransportError):
                wait_until(lambda: not http.get("/health"), 8)


SUPERVISED = """
import sys, threading
from pathlib import Path
import torch
from granite_demo.cli.main import main
from tests.faults.site import Faults, loader_of

def failing(loaded):
    Faults(loaded).raises(torch.AcceleratorError("CUDA error: device-side assert triggered"), 4)

load = loader_of(Path(sys.argv[1]), failing)
import granite_demo.cli.composition as cli
cli.open_model = lambda cache, threads, options, report, cancelled, **rest: load(options, report, cancelled)
main(["serve", "--port", "0", "--model", sys.argv[1]])
"""


@pytest.mark.release
def test_f08_the_process_ends_so_that_a_supervisor_starts_it_again(tiny_folder: Path) -> None:
    command = [sys.executable, "-c", SUPERVISED, str(tiny_folder)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            url = next(line.split()[3] for line in process.stderr if "granite-demo is at" in line)
            reply = httpx.post(f"{url}/v1/completions", json={**LONG, "stream": False}, timeout=30)
            assert "The GPU has failed" in reply.text
            assert httpx.get(f"{url}/health").status_code == 503
            assert process.wait(20) == 1
            assert "The GPU has failed" in process.stderr.read()
        finally:
            process.kill()


def test_f09_logits_that_are_not_numbers_are_an_error(site: Site, faults: Faults) -> None:
    head = site.backend.wait_until_ready().loaded.model.lm_head
    with unharmed(site):
        handle = head.register_forward_hook(lambda module, inputs, output: output * float("nan"))
        try:
            assert "not a number" in error_of(site, 1)
        finally:
            handle.remove()


class Exit(BaseException):
    """Not an Exception. A thread that catches only those would end, and its reader would wait forever."""


@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), Exit("secret")], ids=["exception", "base exception"])
def test_f10_an_exception_of_the_thread_reaches_the_reader(
    site: Site, faults: Faults, error: BaseException, at: int
) -> None:
    with unharmed(site):
        faults.raises(error, at)
        text = error_of(site, at)
        assert f"The model failed while generating ({type(error).__name__})" in text
        assert "secret" not in text
