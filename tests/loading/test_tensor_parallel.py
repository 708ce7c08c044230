"""Tensor parallelism: two processes over gloo, as torchrun starts them, and the options that are refused."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from granite_demo.errors import ConfigurationError
from granite_demo.loading import tensor_parallel
from granite_demo.loading.tensor_parallel import ALONE, Group
from granite_demo.models.config import Shape
from granite_demo.types.load_options import LoadOptions
from tests.engine.running import answer, batching_engine
from tests.group_worker import PROMPTS, SAMPLED
from tests.loaded import load_checkpoint, placed
from tests.tinymodels import SHAPE, write_checkpoint

ROOT = Path(__file__).parents[2]
SECONDS = 120
"""A timeout. Whatever takes longer hangs."""
FOUR_HEADS = replace(SHAPE, heads=8, kv_heads=4)


# Without processes


def test_a_single_process_computes_everything_itself() -> None:
    ALONE.join()
    assert ALONE.leads
    assert ALONE.fixed == ""
    assert ALONE.from_first(lambda: "mine") == "mine"
    assert ALONE.least(7) == 7
    with ALONE.deadline(), pytest.raises(ZeroDivisionError), ALONE.together():
        raise ZeroDivisionError
    ALONE.leave()
    assert not torch.distributed.is_initialized()


def test_only_a_late_exit_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(tensor_parallel, "END_SECONDS", 0.05)
    group = Group(2)
    monkeypatch.setattr(group, "abort", ended.append)
    with group.deadline():
        pass
    time.sleep(0.2)
    assert ended == []
    with group.deadline():
        while not ended:
            time.sleep(0.01)
    assert ended == ["The processes did not end together."]


def test_the_first_process_leads() -> None:
    assert (Group(2, 0).leads, Group(2, 1).leads) == (True, False)
    assert "Stop them" in Group(2, 0).fixed


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_memory_is_shared_if_all_processes_can(monkeypatch: pytest.MonkeyPatch, here: bool, there: bool) -> None:
    from torch.distributed import _symmetric_memory as symmetric

    def empty(words: int, **_: Any) -> torch.Tensor:
        if not here:
            raise RuntimeError("not in this container")
        return torch.full((words,), 7)

    group = Group(2)
    group.peer_access = True
    monkeypatch.setattr(symmetric, "empty", empty)
    monkeypatch.setattr(symmetric, "rendezvous", lambda memory, world: SimpleNamespace(buffer_ptrs=[11, 12]))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(group, "gather", lambda mine: [mine, there])
    found = group.shared_memory(3)
    assert group.peer_access == (here and there)
    assert (found is not None) == group.peer_access
    if found:
        assert found[0].tolist() == [0, 0, 0]
        assert found[1] == [11, 12]


def shared(processes: int = 2, shape: Shape | None = FOUR_HEADS, **options: Any) -> Any:
    return placed(LoadOptions(dtype="float32", **options), shape, 10**10, processes)


def test_the_placement_has_the_number_of_processes() -> None:
    placement = shared(4)
    assert placement.processes == 4
    name, value, reason = placement.facts[0]
    assert (name, value) == ("Device", "cpu, 4 processes")
    assert reason.startswith("tensor parallel over 4 processes")
    assert placed(LoadOptions(dtype="float32"), FOUR_HEADS, 10**10).processes == 1


def test_every_refusal_has_a_solution(sample_path: Path) -> None:
    sample = Shape.from_config(json.loads((sample_path / "config.json").read_text()))
    hybrid = Shape(**{**vars_of(FOUR_HEADS), "model_type": "granitemoehybrid", "attention_layers": 1})
    cases: list[tuple[dict[str, Any], str]] = [
        ({"processes": 3}, "4 key-value heads need --nproc-per-node 1 or 2 or 4"),
        ({"shape": sample}, "3 key-value heads need --nproc-per-node 1 or 3"),
        ({"shape": hybrid}, "its type is granitemoehybrid.*without torchrun"),
        ({"shape": None}, "its type is unknown"),
        ({"quantization": "nf4"}, "nf4 cannot be split.*--quantization none"),
        ({"quantization": "int8"}, "int8 cannot be split"),
        ({"engine": "dynamic"}, "Remove --engine"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigurationError, match=message):
            shared(**options)


def vars_of(shape: Shape) -> dict[str, Any]:
    return {name: getattr(shape, name) for name in shape.__slots__}


@pytest.mark.parametrize(
    ("device", "attention", "message"),
    [
        ("cuda", "sdpa", "FlashAttention 2 or 3.*pip install flash-attn"),
        ("cuda", "flash_attention_2", ""),
        ("mps", "sdpa", "without torchrun"),
    ],
)
def test_devices_that_cannot_split_a_model_are_refused(device: str, attention: str, message: str) -> None:
    if message:
        with pytest.raises(ConfigurationError, match=message):
            tensor_parallel.check(2, LoadOptions(), device, attention, FOUR_HEADS)
    else:
        tensor_parallel.check(2, LoadOptions(), device, attention, FOUR_HEADS)


def test_a_cpu_is_refused_if_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigurationError, match="Remove --device"):
        tensor_parallel.check(2, LoadOptions(), "cpu", "sdpa", FOUR_HEADS)


def test_a_process_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigurationError, match="--nproc-per-node 2"):
        Group(4, 2, 2).join()


# Two processes


@contextmanager
def processes(*command: str) -> Iterator[list["subprocess.Popen[str]"]]:
    """Start two processes of ``python -m command``, with the variables that torchrun sets."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**common, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


def ends(started: list["subprocess.Popen[str]"]) -> list[tuple[int, str]]:
    """Return the exit code and the error output of each process."""
    texts = [process.communicate(timeout=SECONDS)[1] for process in started]
    return [(process.returncode, " ".join(text.split())) for process, text in zip(started, texts, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("group")
    write_checkpoint(folder / "model", "granite", torch.float32, eos_token_id=None)
    return folder


@pytest.fixture(scope="module")
def answered(folder: Path) -> dict[str, Any]:
    """Return the answers of two processes under torchrun."""
    port = "--rdzv-endpoint=127.0.0.1:0"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend=c10d", port]
    command = [*torchrun, "-m", "tests.group_worker", str(folder), "answers"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads((folder / "answers.json").read_text())
    found |= json.loads((folder / "follower.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.release
async def test_a_group_answers_as_one_process_does(folder: Path, answered: dict[str, Any]) -> None:
    found = answered
    assert found["device"][1] == "cpu, 2 processes"
    engine = batching_engine(load_whole(folder / "model"))
    assert found["greedy"] == [await answer(engine, prompt, max_tokens=40) for prompt in PROMPTS]
    assert found["sampled"] == [await answer(engine, prompt, seed=2**40 + 1, **SAMPLED) for prompt in PROMPTS]
    engine.close()
    assert min(map(len, [*found["greedy"], *found["sampled"]])) > 20


@pytest.mark.slow
@pytest.mark.release
def test_a_cancelled_request_ends_in_all_processes(answered: dict[str, Any]) -> None:
    # The processes themselves wait until they are idle.
    assert answered["computed"] is True


def load_whole(model: Path) -> Any:
    return load_checkpoint(model)


@pytest.mark.release
def test_a_process_that_fails_ends_the_others(folder: Path) -> None:
    with processes("tests.group_worker", str(folder), "fail") as started:
        (first, log), (second, why) = ends(started)
    assert (first, second) == (1, 1)
    assert "ZeroDivisionError: broken" in why
    assert "Process 2 of 2 ends." in why
    assert "Process 1 of 2 ends." in log


@contextmanager
def server(model: str) -> Iterator[list["subprocess.Popen[str]"]]:
    """Start the page in two processes and wait until it listens."""
    with processes("granite_demo", "serve", "--port", "0", "--dtype", "float32", "--model", model) as started:
        lines = started[0].stderr
        assert lines is not None
        for line in lines:
            if "granite-demo is at" in line:
                break
        yield started


@pytest.mark.release
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_first_process_ends_all_regularly(folder: Path, number: signal.Signals) -> None:
    with server(str(folder / "model")) as started:
        if number == signal.SIGINT:
            started[1].send_signal(number)  # Ctrl-C reaches all
        started[0].send_signal(number)
        (first, _), (second, _) = ends(started)
    assert (first, second) == (0, 0)


@pytest.mark.release
def test_a_process_that_dies_ends_the_page(folder: Path) -> None:
    with server(str(folder / "model")) as started:
        started[1].kill()
        (first, why), _ = ends(started)
    assert first == 1
    assert "The model's loop has failed. Process 1 of 2 ends." in why


@pytest.mark.release
def test_a_model_that_cannot_be_shared_is_refused_by_all(sample_path: Path) -> None:
    command = ("granite_demo", "serve", "--port", "0", "--dtype", "float32", "--model", str(sample_path))
    with processes(*command) as started:
        (first, why), (second, log) = ends(started)
    assert (first, second) == (1, 1)
    assert "its 3 key-value heads need --nproc-per-node 1 or 3" in why
    assert "The first process could not prepare the model." in log
