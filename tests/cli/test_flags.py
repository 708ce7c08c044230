"""The flags that come from the tables, the values that flags stand for, and the errors of wrong ones."""

from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from granite_demo.cli import flags
from granite_demo.cli.main import create_cli
from granite_demo.errors import ConfigurationError, InvalidRequestError
from granite_demo.settings import OPTIONS, Settings
from granite_demo.types.messages import Controls
from granite_demo.types.sampling_params import SamplingParams


def test_every_command_has_the_flags_of_its_options() -> None:
    commands = typer.main.get_group(create_cli(Console())).commands
    for name, command in commands.items():
        known = {flag for parameter in command.params for flag in parameter.opts}
        own = {option.flag(name) for option in OPTIONS if name in option.commands}
        assert own <= known, name
    assert {name for option in OPTIONS for name in option.commands} == set(commands)
    assert "--backend" not in {flag for parameter in commands["chat"].params for flag in parameter.opts}


def run(*arguments: str) -> tuple[Any, dict[str, Any]]:
    """The result of a command called ``chat`` with ``arguments``, and the values that it got."""
    got: dict[str, Any] = {}
    cli = typer.Typer()

    @cli.command()
    @flags.with_tables
    def chat(
        settings: Settings, sampling: SamplingParams, text: flags.TextArgument = None, device: str = "own"
    ) -> None:
        """Have a flag that is in the table, too."""
        got.update(settings=settings, sampling=sampling, text=text, device=device)

    return CliRunner().invoke(cli, arguments), got


def test_a_command_gets_the_values_of_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRANITE_DEMO_THREADS", "3")
    monkeypatch.setenv("GRANITE_DEMO_DEVICE", "cpu")
    done, got = run("Hi", "--url", "http://a", "--context", "99", "--device", "mine", "--top-k", "4", "--stop", "a")
    assert done.exit_code == 0, done.output
    assert got == {
        "settings": Settings(backend="http://a", context=99, threads=3, device="cpu"),
        "sampling": SamplingParams(top_k=4, stop=("a",), max_tokens=flags.USUAL_MAX_TOKENS),
        "text": "Hi",
        "device": "mine",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--threads", "70000"), "--threads must be between"), (("--temperature", "3"), "Temperature must be between")],
)
def test_a_bad_value_is_an_error_before_the_command_runs(arguments: tuple[str, ...], words: str) -> None:
    done, got = run(*arguments)
    assert isinstance(done.exception, ConfigurationError)
    assert words in str(done.exception)
    assert got == {}


def test_the_help_of_a_flag_names_default_and_variable() -> None:
    text = " ".join(run("--help")[0].output.replace("│", " ").split())
    assert "Maximum context in tokens." in text
    assert "Default: 0. Variable: GRANITE_DEMO_CONTEXT." in text


def test_flags_that_are_not_given_keep_the_defaults() -> None:
    assert flags.sampling({"temperature": 0.5, "stop": None, "seed": 0}) == SamplingParams(temperature=0.5, seed=0)


@pytest.mark.parametrize(
    "given", [{"temperature": 3.0}, {"top_p": 0.0}, {"seed": -1}, {"stop": [""]}, {"max_tokens": 0}, {"min_p": 2}]
)
def test_a_bad_value_is_a_bad_setting_with_the_words_of_the_page(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as on_page:
        SamplingParams(**given)
    with pytest.raises(ConfigurationError) as as_flag:
        flags.sampling(given)
    assert as_flag.value.user_text == on_page.value.user_text


def test_thinking() -> None:
    assert flags.controls(None) == Controls()
    assert flags.controls("low") == Controls(thinking="low")
    with pytest.raises(ConfigurationError, match="^--thinking must be one of off, low, full, not 'much'"):
        flags.controls("much")
