"""All commands: help, completion, mistakes, and loads that fail or are cancelled."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.cli import composition
from granite_demo.errors import ConfigurationError, LoadCancelledError
from granite_demo.settings import Settings
from granite_demo.types.load_options import LoadOptions, Report
from tests.tinymodels import write_checkpoint

Run = Callable[..., tuple[int, str, str]]


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "granite_demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_lists_the_commands() -> None:
    done = start("--help")
    assert done.returncode == 0
    assert {"serve", "complete", "chat", "score", "compare", "bench", "models", "fits", "pull"} <= set(
        done.stdout.split()
    )


def test_help_names_flags_defaults_and_variables() -> None:
    text = start("serve", "--help").stdout
    assert "--port" in text
    assert "7860" in text
    assert "GRANITE_DEMO_PORT" in text


@pytest.mark.parametrize(
    ("shell", "typed"),
    [
        ("bash", {"COMP_WORDS": "granite-demo sc", "COMP_CWORD": "1"}),
        pytest.param("zsh", {"_TYPER_COMPLETE_ARGS": "granite-demo sc"}, marks=pytest.mark.release),
        pytest.param(
            "fish",
            {"_TYPER_COMPLETE_ARGS": "granite-demo sc", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
            marks=pytest.mark.release,
        ),
    ],
)
def test_a_shell_completes_the_commands(shell: str, typed: dict[str, str]) -> None:
    variables = {**os.environ, "_GRANITE_DEMO_COMPLETE": f"complete_{shell}", **typed}
    command = [sys.executable, "-m", "granite_demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=variables)
    assert done.returncode == 0
    assert "score" in done.stdout
    assert "serve" not in done.stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("complete", ("[TEXT]", "--raw", "--chat", "--stop", "--thinking", "--json", "--model", "GRANITE_DEMO_DEVICE")),
        ("chat", ("--system", "--temperature", "--model", "--context", "Ctrl-C", "/help")),
        ("score", ("[TEXT]", "--alternatives", "--special-tokens", "--json", "--model", "perplexity")),
        ("compare", ("[TEXT]", "--reference", "--other", "bfloat16", "nf4", "--csv", "--json", "--model")),
        ("models", ("--json", "--context", "--cache-dir", "List the models")),
        ("fits", ("--json", "--memory", "24GB", "--context", "[MODEL]")),
        ("bench", ("--suite", "--users", "--prompts", "--json", "--plot", "--rounds", "three minutes")),
        ("pull", ("--json", "--revision", "GRANITE_DEMO_REVISION", "MODEL", "Ctrl-C")),
    ],
)
def test_help_of_each_command(command: str, words: tuple[str, ...], run: Run) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert [word for word in words if word not in out] == []


def test_an_unknown_flag_is_exit_code_two() -> None:
    done = start("serve", "--no-such-flag")
    assert done.returncode == 2
    assert "No such option" in done.stderr


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("complete Why? --temperature 3", 2, "granite-demo: Temperature must be between 0 and 2, not 3."),
        ("complete Why? --temperature warm", 2, "--temperature"),
        ("complete Why? --frequency-penalty 9", 2, "Frequency penalty must be between -2 and 2"),
        ("complete Why? --thinking much", 2, "--thinking must be one of off, low, full"),
        ("complete Why? --raw --system Brief.", 2, "--system needs the chat template. Remove it, or remove --raw."),
        ("complete Why? --raw --thinking off", 2, "--thinking needs the chat template"),
        ("complete Why? --special-tokens", 2, "Add --raw."),
        ("complete Why? --suffix end", 2, "Add --raw."),
        ("complete Why? --logprobs 3", 2, "Add --json."),
        ("complete Why? --json --logprobs 21", 2, "Logprobs must be between 0 and 20"),
        ("complete Why? --regex a --choice b", 2, "Use only one of"),
        (f"complete Why? --regex {'a' * 5000}", 2, "characters"),
        ("complete Why? --schema /nowhere/at/all.json", 2, "--schema cannot be read"),
        ("complete Why? --device abacus", 2, "--device must be one of"),
        ("complete ''", 2, "The prompt is empty."),
        ("complete --chat ' '", 2, "The message is empty."),
        ("chat --top-p 0", 2, "Top-p must be above 0"),
        ("chat --thinking x", 2, "--thinking must"),
        ("chat --dtype x", 2, "--dtype must be one of"),
        ("score ''", 2, "The text to score is empty."),
        ("score a --alternatives 21", 2, "--alternatives"),
        ("compare a --other int4", 2, "must be one of bfloat16, float16, float32, int8, nf4, fp4"),
        ("compare a --reference auto", 2, "--reference must be one of"),
        ("compare a --reference nf4", 2, "the same"),
        ("compare ''", 2, "There is no text."),
        ("compare a --url http://127.0.0.1:1", 2, "--url cannot be used here"),
        ("bench --suite speed", 2, "--suite must be limit, all, or a list of load, decode, ttft, page"),
        ("bench --users 0", 2, "--users must be 1 or more"),
        ("bench --plot out.png", 2, "pip install matplotlib"),
        ("bench --model no-such-model", 1, "no-such-model"),
        ("fits granite-3.3-2b", 1, "Did you mean granite-3.3-2b-"),
        ("fits --memory much", 2, "--memory: 'much' is not an amount of memory."),
        ("fits --memory 0", 2, "--memory: The memory must be above 0."),
        ("fits --memory ''", 2, "--memory: '' is not an amount of memory."),
        ("fits --context -1", 2, "--context must be between 0 and"),
        ("pull granite-9", 1, "There is no model 'granite-9'"),
        ("pull sample --revision main", 2, "sample has no revisions."),
        ("pull", 2, "Missing argument"),
    ],
)
def test_mistakes_are_errors_before_a_model_is_opened(
    command: str, code: int, words: str, opened: list[Settings], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    got, out, err = run(*shlex.split(command))
    assert (got, out, opened) == (code, "", [])
    assert words in err


@pytest.mark.parametrize("url", ["ftp://nowhere", "nonsense"])
def test_a_bad_address_of_a_server_is_exit_code_two(url: str, run: Run) -> None:
    assert run("doctor", "--url", url)[0] == 2


def test_an_unknown_model_is_exit_code_one(run: Run) -> None:
    code, _, err = run("complete", "Why?", "--model", "no-model")
    assert (code, "There is no model 'no-model'" in err) == (1, True)


def test_bench_of_several_processes_measures_no_page(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = run("bench", "--suite", "page")
    assert code == 2
    assert "only --suite decode and ttft" in err


def test_a_load_that_fails_keeps_its_exit_code(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def fail(cache_dir: Path, threads: int, options: LoadOptions, *more: object, **named: object) -> ReadyModel:
        raise ConfigurationError(f"No {options.device} here.")

    monkeypatch.setattr(composition, "open_model", fail)
    code, out, err = run("complete", "Why?", "--model", "sample", "--device", "cuda")
    assert (code, out) == (2, "")
    assert "granite-demo: No cuda here." in err


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("command", [["complete", "Why?"], ["chat"]])
def test_ctrl_c_ends_a_load(command: list[str], monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    heard: list[bool] = []

    def load(
        cache_dir: Path, threads: int, options: LoadOptions, report: Report, cancelled: Event, **more: object
    ) -> ReadyModel:
        time.sleep(0.2)  # until the main thread waits
        os.kill(os.getpid(), signal.SIGINT)
        heard.append(cancelled.wait(5))
        raise LoadCancelledError("The load was cancelled.")

    monkeypatch.setattr(composition, "open_model", load)
    code, _, err = run(*command, "--model", "sample")
    assert (code, heard) == (130, [True])
    assert "Traceback" not in err


WITHOUT_SERVER = """
import runpy, sys
for name in ("gradio", "gradio_client", "fastapi", "uvicorn", "httpx"):
    sys.modules[name] = None
runpy.run_module("granite_demo", run_name="__main__", alter_sys=True)
"""


@pytest.mark.release
def test_bench_of_a_folder_needs_no_server_and_prints_only_json(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "granite")
    sizes = ("--users", "1,2", "--tokens", "4", "--prompts", "32,1024", "--rounds", "1", "--json", "-")
    command = [sys.executable, "-c", WITHOUT_SERVER, "bench", "--model", str(folder), "--device", "cpu", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {(row["users"], row["way"]) for row in found["decode"]["rows"] if not row["documented"]} == {
        (1, "granite-demo"),
        (2, "granite-demo"),
    }
    assert [row["prompt_tokens"] for row in found["ttft"]] == [32]
    assert found["load"]["weights"] > 0
    assert found["page"] == []
    assert any("gradio" in note for note in found["notes"])
    assert "decode, round 1 of 1" in done.stderr
