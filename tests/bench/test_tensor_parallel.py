"""Tests for the measurement of several processes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from granite_demo.bench.options import BenchOptions
from granite_demo.errors import ConfigurationError
from tests.loading.test_tensor_parallel import ROOT, SECONDS
from tests.tinymodels import write_checkpoint


@pytest.mark.parametrize(
    ("flags", "started", "message"),
    [
        ({"processes": 4}, 1, "torchrun --nproc-per-node 4 -m granite_demo bench --tensor-parallel 4"),
        ({"processes": 4}, 2, "needs 4 processes, but 2 are running"),
        ({"suites": ("page",)}, 2, "only --suite decode and ttft"),
        ({"plot_file": Path("bench.png")}, 2, "Remove --plot"),
    ],
)
def test_options_that_do_not_fit_the_processes_raise(flags: dict[str, Any], started: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        BenchOptions(**flags).check_processes(started)


@pytest.mark.parametrize("options", [BenchOptions(), BenchOptions(processes=2)])
def test_the_flag_may_repeat_the_number_of_processes(options: BenchOptions) -> None:
    options.check_processes(2)


@pytest.mark.slow
@pytest.mark.release
def test_two_processes_beside_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", "granite", torch.float32, eos_token_id=None)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend=c10d"]
    bench = ["-m", "granite_demo", "bench", "--tensor-parallel", "2", "--model", str(tmp_path / "model")]
    how = ["--dtype", "float32", "--engine", "batching", "--users", "1,2", "--prompts", "64", "--tokens", "6"]
    output = tmp_path / "report.json"
    command = [*torchrun, "--rdzv-endpoint=127.0.0.1:0", *bench, *how, "--rounds", "1", "--json", str(output)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert run.returncode == 0, run.stderr
    alone, shared = json.loads(output.read_text())["parts"]
    assert (alone["processes"], shared["processes"]) == (1, 2)
    assert [row["users"] for row in shared["decode"]["rows"]] == [1, 1, 2, 2]
    assert [row["prompt_tokens"] for row in shared["ttft"]] == [64]
    weights = alone["memory"][0]["weights"]
    assert [round(memory["weights"] / weights, 1) for memory in shared["memory"]] == [0.5, 0.5]
    assert "2 processes compared with one" in run.stdout
