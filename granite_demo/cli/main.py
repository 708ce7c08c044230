"""The command line, and the composition root: the one place that puts settings, manager, backend and server together.

Heavy packages are imported inside the commands, so that ``--help`` and mistakes in flags answer at once.
"""

import os
from collections.abc import Sequence
from functools import partial

import typer
from rich.console import Console

from granite_demo.backends.open_model import open_model
from granite_demo.bench.options import LIMIT, BenchOptions
from granite_demo.cli import flags
from granite_demo.cli import models as commands
from granite_demo.cli.chat import add_chat_command
from granite_demo.cli.complete import add_complete_command
from granite_demo.cli.composition import model_manager, opened_backend, ready_backend
from granite_demo.cli.doctor import add_doctor_command
from granite_demo.cli.models import show_remote_models
from granite_demo.cli.replay import add_replay_command
from granite_demo.cli.score import add_compare_command, add_score_command
from granite_demo.cli.serve import run_server
from granite_demo.cli.terminal import LoadReporter, set_up_logging
from granite_demo.errors import ConfigurationError, GraniteDemoError
from granite_demo.loading.tensor_parallel import Group
from granite_demo.settings import Settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with ``arguments``, by default the process's own, and exit."""
    console = Console(stderr=True)
    try:
        create_cli(console)(args=arguments, prog_name="granite-demo")
    except GraniteDemoError as error:
        console.print(f"granite-demo: {error.user_text}", style="red", markup=False, highlight=False)
        raise SystemExit(2 if isinstance(error, ConfigurationError) else 1) from None


def create_cli(console: Console) -> typer.Typer:
    """The commands. ``console`` is where logs and progress go."""
    cli = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Try IBM Granite language models in the browser and in the terminal.",
    )

    @cli.command()
    def serve(
        model: flags.Model = None,
        host: flags.Host = None,
        port: flags.Port = None,
        device: flags.Device = None,
        dtype: flags.Dtype = None,
        quantization: flags.Quantization = None,
        attention: flags.Attention = None,
        engine: flags.Engine = None,
        compile: flags.Compile = None,
        keep_quantized: flags.KeepQuantized = None,
        context: flags.Context = None,
        revision: flags.Revision = None,
        idle_minutes: flags.IdleMinutes = None,
        threads: flags.Threads = None,
        cache_dir: flags.CacheDir = None,
        admin_token: flags.AdminToken = None,
        api_key: flags.ApiKey = None,
        login: flags.Login = None,
        share: flags.Share = None,
        visitor_answers: flags.VisitorAnswers = None,
        visitor_waiting: flags.VisitorWaiting = None,
        visitor_tokens: flags.VisitorTokens = None,
        answer_seconds: flags.AnswerSeconds = None,
        allowed_hosts: flags.AllowedHosts = None,
        trusted_proxies: flags.TrustedProxies = None,
        backend: flags.Backend = None,
        backend_key: flags.BackendKey = None,
        backend_model: flags.BackendModel = None,
        beside: flags.Beside = None,
        beside_key: flags.BesideKey = None,
        log_level: flags.LogLevel = None,
    ) -> None:
        """Serve the page."""
        run_server(Settings.resolve(locals(), os.environ), console, opened_backend)

    add_complete_command(cli, console, os.environ, ready_backend)
    add_chat_command(cli, console, os.environ, ready_backend)
    add_score_command(cli, console, os.environ, ready_backend)
    add_compare_command(cli, console, os.environ, ready_backend)
    add_doctor_command(cli, console, os.environ, ready_backend)
    add_bench_command(cli, console)
    add_replay_command(cli, console)
    add_model_commands(cli, console)
    return cli


def add_bench_command(cli: typer.Typer, console: Console) -> None:
    """The command that measures."""

    @cli.command()
    def bench(
        model: flags.Model = None,
        suite: flags.Suite = None,
        users: flags.Users = None,
        prompts: flags.Prompts = None,
        tokens: flags.Tokens = None,
        rounds: flags.Rounds = 3,
        json_file: flags.JsonFile = None,
        plot_file: flags.Plot = None,
        tensor_parallel: flags.TensorParallel = None,
        device: flags.Device = None,
        dtype: flags.Dtype = None,
        quantization: flags.Quantization = None,
        attention: flags.Attention = None,
        engine: flags.Engine = None,
        compile: flags.Compile = None,
        context: flags.Context = None,
        threads: flags.Threads = None,
        cache_dir: flags.CacheDir = None,
        backend: flags.Url = None,
        backend_key: flags.UrlKey = None,
    ) -> None:
        """Measure this machine beside transformers' documented ways and beside what its memory allows.

        With the sample model on two CPU cores it takes about three minutes. With --url it measures a running server, as
        its users see it.
        """
        settings = Settings.resolve(locals(), os.environ)
        asked = BenchOptions.parse(suite, users, prompts, tokens, rounds, json_file, plot_file, tensor_parallel)
        run_bench(settings, asked, console)


def add_model_commands(cli: typer.Typer, console: Console) -> None:
    """The commands that start nothing."""

    @cli.command()
    def models(
        context: flags.Context = None,
        cache_dir: flags.CacheDir = None,
        as_json: flags.AsJson = False,
        backend: flags.Url = None,
        backend_key: flags.UrlKey = None,
    ) -> None:
        """List the models: size, whether they are here already, and whether they fit this machine; or a server's."""
        settings = Settings.resolve(locals(), os.environ)
        show = show_remote_models if settings.backend else commands.show_models
        show(settings, as_json)

    @cli.command()
    def fits(
        model: flags.ModelToFit = None,
        memory: flags.Memory = None,
        context: flags.Context = None,
        as_json: flags.AsJson = False,
        url: flags.NoUrl = None,
    ) -> None:
        """Tell what a model needs in each precision, the longest context, and whether it fits."""
        commands.refuse_url(
            url, "What fits is asked of this machine. granite-demo models --url lists a server's models."
        )
        commands.show_fits(model, memory, Settings.resolve({"context": context}, os.environ), as_json)

    @cli.command()
    def pull(
        model: flags.ModelToPull,
        revision: flags.Revision = None,
        cache_dir: flags.CacheDir = None,
        as_json: flags.AsJson = False,
        url: flags.NoUrl = None,
    ) -> None:
        """Download a model to huggingface_hub's cache, or prepare the sample. Ctrl-C keeps what was downloaded."""
        commands.refuse_url(url, "A server fetches its models itself: start it with the model's name.")
        commands.pull(Settings.resolve(locals(), os.environ), as_json, console)


def run_bench(settings: Settings, asked: BenchOptions, console: Console) -> None:
    """Measure, then print the report and write the files that were asked for."""
    set_up_logging("warning", console)
    asked.check_processes(settings.processes)
    from granite_demo.bench import fused_layers, output, remote, run
    from granite_demo.bench import tensor_parallel as parallel
    from granite_demo.bench.suites.load import StageClock

    def tell(text: str) -> None:
        console.print(text, style="dim", markup=False, highlight=False)

    if settings.backend:
        return remote.run(ready_backend(settings, console), asked, tell)
    opened = partial(open_model, settings.cache_dir, settings.threads, settings.load_options(), ignore_ends=True)
    if settings.processes > 1:
        return parallel.run(opened, Group(settings.processes, settings.rank, settings.local_rank), asked, tell)
    if asked.suites == (LIMIT,):
        return fused_layers.run(opened, asked, tell)
    clock = StageClock(LoadReporter(console))
    manager = model_manager(settings, clock, ignore_ends=True)
    serve = settings.as_flags(
        "model",
        "device",
        "dtype",
        "quantization",
        "attention",
        "engine",
        "compile",
        "context",
        "threads",
        "cache_dir",
    )
    try:
        report = run.run(manager, settings.load_options(), clock, asked, serve, tell)
    finally:
        manager.close()
    output.write(report, asked)
