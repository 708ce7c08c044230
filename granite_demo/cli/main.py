"""The command line. The commands import heavy packages themselves, so that help and errors in flags appear at once."""

from collections.abc import Sequence
from dataclasses import replace

import typer
from rich.console import Console

from granite_demo.cli import flags
from granite_demo.cli.bench import add_bench_command
from granite_demo.cli.chat import add_chat_command
from granite_demo.cli.complete import add_complete_command
from granite_demo.cli.composition import ready_backend
from granite_demo.cli.doctor import add_doctor_command
from granite_demo.cli.models import add_model_commands
from granite_demo.cli.score import add_compare_command, add_score_command
from granite_demo.cli.serve import run_server
from granite_demo.cli.terminal import Output
from granite_demo.errors import ConfigurationError, GraniteDemoError
from granite_demo.settings import Settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with ``arguments``, by default those of the process, and exit."""
    console = Output(stderr=True)
    try:
        create_cli(console)(args=arguments, prog_name="granite-demo")
    except GraniteDemoError as error:
        console.print(f"granite-demo: {error.user_text}", style="red", markup=False, highlight=False)
        raise SystemExit(2 if isinstance(error, ConfigurationError) else 1) from None


def create_cli(console: Console) -> typer.Typer:
    """The commands. Logs and progress go to ``console``."""
    cli = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Try IBM Granite language models in the browser and in the terminal.",
    )

    @cli.command()
    @flags.with_tables
    def serve(settings: Settings) -> None:
        """Serve the page and the HTTP API."""
        run_server(settings, console)

    @cli.command()
    @flags.with_tables
    def replay(
        settings: Settings, file: flags.AnswerFile, as_json: flags.AsJson = False, model: flags.ModelToReplay = None
    ) -> None:
        """Generate a saved answer again and show the first difference. The exit code is 0 if there is none, else 1."""
        from granite_demo.cli.replay import run_replay

        settings = replace(settings, model=model or settings.model)
        raise typer.Exit(0 if run_replay(file, settings, model is not None, console, ready_backend, as_json) else 1)

    add_complete_command(cli, console, ready_backend)
    add_chat_command(cli, console, ready_backend)
    add_score_command(cli, console, ready_backend)
    add_compare_command(cli, console, ready_backend)
    add_doctor_command(cli, console, ready_backend)
    add_bench_command(cli, console)
    add_model_commands(cli, console)
    return cli
