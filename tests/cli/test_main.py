"""The command line's manners."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.cli import composition
from granite_demo.cli.main import main
from granite_demo.errors import ConfigurationError, LoadCancelledError
from granite_demo.types.load_options import LoadOptions, Report
from tests.tinymodels import write_checkpoint


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "granite_demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_lists_the_commands() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert {"serve", "complete", "chat", "score", "compare", "bench", "models", "fits", "pull"} <= set(
        done.stdout.split()
    )


def test_help_names_flags_defaults_and_variables() -> None:
    text = run("serve", "--help").stdout
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
def test_help_of_each_command(command: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert not end.value.code
    said = capsys.readouterr().out
    assert [word for word in words if word not in said] == []


def test_an_unknown_flag_is_exit_code_two() -> None:
    done = run("serve", "--no-such-flag")
    assert done.returncode == 2
    assert "No such option" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite", "speed"], "--suite must be limit, all or some of load, decode, ttft, page"),
        (["--users", "0"], "--users must be 1 or more"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--plot", "out.png"], "pip install matplotlib"),
    ],
)
def test_mistakes_in_bench_are_told_before_it_measures(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    assert end.value.code in (1, 2)
    printed = capsys.readouterr()
    assert words in " ".join(printed.err.split())
    assert printed.out == ""


def test_bench_of_several_processes_measures_no_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        main(["bench", "--suite", "page"])
    assert end.value.code == 2
    assert "--suite decode and ttft only" in " ".join(capsys.readouterr().err.split())


def test_a_load_that_fails_keeps_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(cache_dir: Path, threads: int, options: LoadOptions, *more: object, group: object) -> ReadyModel:
        raise ConfigurationError(f"No {options.device} here.")

    monkeypatch.setattr(composition, "open_model", fail)
    with pytest.raises(SystemExit) as end:
        main(["complete", "Why?", "--model", "sample", "--device", "cuda"])
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert "granite-demo: No cuda here." in err


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("command", [["complete", "Why?"], ["chat"]])
def test_ctrl_c_ends_a_load(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[bool] = []

    def load(
        cache_dir: Path, threads: int, options: LoadOptions, report: Report, cancelled: Event, group: object
    ) -> ReadyModel:
        time.sleep(0.2)  # until the main thread waits
        os.kill(os.getpid(), signal.SIGINT)
        heard.append(cancelled.wait(5))
        raise LoadCancelledError("The load was cancelled.")

    monkeypatch.setattr(composition, "open_model", load)
    with pytest.raises(SystemExit) as end:
        main([*command, "--model", "sample"])
    assert (end.value.code, heard) == (130, [True])
    assert "Traceback" not in capsys.readouterr().err


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
