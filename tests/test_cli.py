"""The command line's manners."""

import subprocess
import sys

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "granite_demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_lists_the_commands() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert {"serve", "bench", "models", "fits", "pull"} <= set(done.stdout.split())


def test_help_names_flags_defaults_and_variables() -> None:
    text = run("serve", "--help").stdout
    assert "--port" in text
    assert "7860" in text
    assert "GRANITE_DEMO_PORT" in text


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("models", ("--json", "--context", "--cache-dir", "List the models")),
        ("fits", ("--json", "--memory", "24GB", "--context", "[MODEL]")),
        ("pull", ("--json", "--revision", "GRANITE_DEMO_REVISION", "MODEL", "Ctrl-C")),
    ],
)
def test_help_of_the_commands_about_models(command: str, words: tuple[str, ...]) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert [word for word in words if word not in done.stdout] == []


def test_an_unknown_flag_is_exit_code_two() -> None:
    done = run("serve", "--no-such-flag")
    assert done.returncode == 2
    assert "No such option" in done.stderr
