"""Fixtures of the commands: a command line in this process, over a fake backend."""

from collections.abc import Callable

import pytest
from rich.console import Console

from granite_demo.cli import main as cli
from granite_demo.settings import Settings
from tests.fakes import FakeBackend


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line. Returns the exit code, standard output, and standard error as one line."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, " ".join(err.split())

    return run


@pytest.fixture
def opened(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings with which the commands open the fake backend, in place of a real one."""
    found: list[Settings] = []

    def open_fake(settings: Settings, console: Console) -> FakeBackend:
        found.append(settings)
        return backend

    monkeypatch.setattr(cli, "ready_backend", open_fake)
    return found
