"""The command line, and the composition root: the one place that puts settings, manager, backend and server together.

Heavy packages are imported inside the commands, so that ``--help`` and mistakes in flags answer at once.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any

import typer
from rich.console import Console

from granite_demo import commands, flags, registry
from granite_demo.backends import Backend, LocalBackend
from granite_demo.bench.options import LIMIT, BenchOptions
from granite_demo.chatting import add_chat_command
from granite_demo.choosing import remember_model
from granite_demo.comparing_command import add_compare_command
from granite_demo.completing import add_complete_command
from granite_demo.doctor_command import add_doctor_command
from granite_demo.errors import ConfigurationError, GraniteDemoError
from granite_demo.manager import Listener, ModelManager
from granite_demo.opening import open_model
from granite_demo.printing import print_json
from granite_demo.remote.backend import RemoteBackend
from granite_demo.remote.opening import remote_backend, show_remote_models
from granite_demo.scoring_command import add_score_command
from granite_demo.serving import run_server
from granite_demo.settings import Settings
from granite_demo.tensor_parallel import ALONE, Group
from granite_demo.terminal import LoadReporter, set_up_logging


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


def add_replay_command(cli: typer.Typer, console: Console) -> None:
    """The command that makes an answer again."""

    @cli.command()
    def replay(
        file: flags.AnswerFile,
        as_json: flags.AsJson = False,
        backend: flags.Url = None,
        backend_key: flags.UrlKey = None,
        model: flags.Model = None,
        revision: flags.Revision = None,
        device: flags.Device = None,
        dtype: flags.Dtype = None,
        quantization: flags.Quantization = None,
        attention: flags.Attention = None,
        engine: flags.Engine = None,
        threads: flags.Threads = None,
        cache_dir: flags.CacheDir = None,
    ) -> None:
        """Make a saved answer again and tell where it first differs. The exit code is 0 if it does not, else 1."""
        settings = Settings.resolve(locals(), os.environ)
        raise typer.Exit(0 if run_replay(file, settings, model is not None, console, as_json=as_json) else 1)


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


def local_backend(settings: Settings, console: Console, group: Group = ALONE) -> LocalBackend:
    """The backend over a model of this process. Raises UnknownModelError for a name that cannot be loaded."""
    manager = model_manager(settings, LoadReporter(console), 60.0 * settings.idle_minutes, group=group)
    return LocalBackend(manager, settings.load_options(), partial(remember_model, settings.cache_dir), group.fixed)


def opened_backend(settings: Settings, console: Console, group: Group = ALONE) -> LocalBackend | RemoteBackend:
    """The backend that ``settings`` ask for: over a model of this process, or over other servers."""
    return remote_backend(settings) if settings.backend else local_backend(settings, console, group)


def ready_backend(settings: Settings, console: Console) -> LocalBackend | RemoteBackend:
    """The same, its model ready. Waits for it here, where Ctrl-C ends the wait; raises what the load raises."""
    set_up_logging("warning", console)
    backend = opened_backend(settings, console)
    try:
        backend.wait_until_ready()
    except BaseException:
        backend.close()
        raise
    return backend


def model_manager(settings: Settings, listener: Listener, idle_seconds: float = 0.0, **opening: Any) -> ModelManager:
    """The manager that loads as ``settings`` say. Raises UnknownModelError for a name that cannot be loaded."""
    if settings.model != "auto":
        registry.resolve(settings.model)
    loader = partial(open_model, settings.cache_dir, settings.threads, **opening)
    return ModelManager(loader, listener, idle_seconds)


def run_bench(settings: Settings, asked: BenchOptions, console: Console) -> None:
    """Measure, then print the report and write the files that were asked for."""
    set_up_logging("warning", console)
    asked.check_processes(settings.processes)
    from granite_demo.bench import limit, output, parallel, served, suites
    from granite_demo.bench.load import StageClock

    def tell(text: str) -> None:
        console.print(text, style="dim", markup=False, highlight=False)

    if settings.backend:
        return served.run(ready_backend(settings, console), asked, tell)
    opened = partial(open_model, settings.cache_dir, settings.threads, settings.load_options(), ignore_ends=True)
    if settings.processes > 1:
        return parallel.run(opened, Group(settings.processes, settings.rank, settings.local_rank), asked, tell)
    if asked.suites == (LIMIT,):
        return limit.run(opened, asked, tell)
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
        report = suites.run(manager, settings.load_options(), clock, asked, serve, tell)
    finally:
        manager.close()
    output.write(report, asked)


def run_replay(
    file: str,
    settings: Settings,
    chosen: bool,
    console: Console,
    opened: Callable[..., Backend] = opened_backend,
    as_json: bool = False,
) -> bool:
    """Make the answer in ``file`` again, with its own model unless one was ``chosen``; whether it is the same."""
    set_up_logging("warning", console)
    from granite_demo import bundle, replay

    answer = bundle.read_file(file)
    chosen = chosen or bool(settings.backend)
    with closing(opened(settings if chosen else replay.settings_for(answer, settings), console)) as backend:
        outcome = asyncio.run(replay.replay(backend, answer))
    if as_json:
        print_json({"equal": outcome.equal, **asdict(outcome)})
    else:
        replay.show(outcome)
    return outcome.equal
