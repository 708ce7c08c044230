"""``granite-demo doctor`` in front of a server that speaks OpenAI's API."""

import json
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from granite_demo.cli.composition import remote_backend
from granite_demo.cli.doctor import add_doctor_command
from granite_demo.errors import ConfigurationError
from granite_demo.settings import Settings
from tests.fakes import FakeBackend
from tests.fakeserver import FakeServer, ended, said, serving


def run(*arguments: str, local: FakeBackend | None = None) -> Any:
    def opened(settings: Settings, console: Console) -> Any:
        if not settings.backend:
            assert settings.model == "here"
            return local or FakeBackend()
        backend = remote_backend(settings)
        backend.wait_until_ready()
        return backend

    cli = typer.Typer()
    add_doctor_command(cli, Console(stderr=True), opened)
    cli.command("other")(lambda: None)
    return CliRunner().invoke(cli, ["doctor", "--model", "here", *arguments])


def test_a_server_with_another_prompt_is_named() -> None:
    server = FakeServer([said("Hello"), said(" moon!"), ended()])
    with serving(server):
        result = run("--url", server.url, "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert "text" in [finding["what"] for finding in told["findings"] if finding["cause"]]
    assert told["cause"]


def test_without_a_server_it_says_how_to_name_one() -> None:
    assert isinstance(run().exception, ConfigurationError)
    assert "--url" in str(run().exception)


@pytest.mark.parametrize("url", ["ftp://nowhere", "nonsense"])
def test_a_bad_address_is_refused(url: str) -> None:
    assert isinstance(run("--url", url).exception, ConfigurationError)
