"""The command line, and the composition root: the one place that puts settings, manager, backend and server together.

Heavy packages are imported inside the commands, so that ``--help`` and mistakes in flags answer at once.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from granite_demo import commands, registry
from granite_demo.backends import LocalBackend
from granite_demo.choosing import remember_model
from granite_demo.errors import ConfigurationError, GraniteDemoError
from granite_demo.manager import ModelManager
from granite_demo.opening import open_model
from granite_demo.settings import Settings, help_text
from granite_demo.terminal import LoadReporter, print_bench, set_up_logging


def _flag(name: str) -> Any:
    return typer.Option(help=help_text(name), show_default=False)


ModelFlag = Annotated[str | None, _flag("model")]
HostFlag = Annotated[str | None, _flag("host")]
PortFlag = Annotated[int | None, _flag("port")]
DeviceFlag = Annotated[str | None, _flag("device")]
DtypeFlag = Annotated[str | None, _flag("dtype")]
QuantizationFlag = Annotated[str | None, _flag("quantization")]
AttentionFlag = Annotated[str | None, _flag("attention")]
KeepFlag = Annotated[str | None, _flag("keep_quantized")]
ContextFlag = Annotated[int | None, _flag("context")]
RevisionFlag = Annotated[str | None, _flag("revision")]
TokenFlag = Annotated[str | None, _flag("admin_token")]
IdleFlag = Annotated[int | None, _flag("idle_minutes")]
ThreadsFlag = Annotated[int | None, _flag("threads")]
CacheFlag = Annotated[Path | None, _flag("cache_dir")]
LogFlag = Annotated[str | None, _flag("log_level")]
FitsArgument = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="A model of the registry, or a folder. Default: all of them.")
]
PullArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A model of the registry.")]
MemoryFlag = Annotated[
    str | None, typer.Option(help="Memory to plan for, like 24GB. Default: what is free on this machine.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


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
        no_args_is_help=True, pretty_exceptions_enable=False, help="Try IBM Granite language models in the browser."
    )

    @cli.command()
    def serve(
        model: ModelFlag = None,
        host: HostFlag = None,
        port: PortFlag = None,
        device: DeviceFlag = None,
        dtype: DtypeFlag = None,
        quantization: QuantizationFlag = None,
        attention: AttentionFlag = None,
        keep_quantized: KeepFlag = None,
        context: ContextFlag = None,
        revision: RevisionFlag = None,
        idle_minutes: IdleFlag = None,
        threads: ThreadsFlag = None,
        cache_dir: CacheFlag = None,
        admin_token: TokenFlag = None,
        log_level: LogFlag = None,
    ) -> None:
        """Serve the page."""
        run_server(Settings.resolve(locals(), os.environ), console)

    @cli.command()
    def bench(
        model: ModelFlag = None,
        device: DeviceFlag = None,
        dtype: DtypeFlag = None,
        quantization: QuantizationFlag = None,
        attention: AttentionFlag = None,
        threads: ThreadsFlag = None,
        cache_dir: CacheFlag = None,
        tokens: Annotated[int, typer.Option(min=2, max=4096, help="New tokens of each answer.")] = 100,
        rounds: Annotated[int, typer.Option(min=1, max=20, help="Answers of each way; the medians are shown.")] = 3,
    ) -> None:
        """Measure this machine against transformers' own generate, and the time from start to first token."""
        flags = dict(locals())
        run_bench(Settings.resolve(flags, os.environ), tokens, rounds, console)

    add_model_commands(cli, console)
    return cli


def add_model_commands(cli: typer.Typer, console: Console) -> None:
    """The commands that start nothing."""

    @cli.command()
    def models(context: ContextFlag = None, cache_dir: CacheFlag = None, as_json: JsonFlag = False) -> None:
        """List the models: size, whether they are here already, and whether they fit this machine."""
        commands.show_models(Settings.resolve(locals(), os.environ), as_json)

    @cli.command()
    def fits(
        model: FitsArgument = None,
        memory: MemoryFlag = None,
        context: ContextFlag = None,
        as_json: JsonFlag = False,
    ) -> None:
        """Tell what a model needs in each precision, the longest context, and whether it fits."""
        commands.show_fits(model, memory, Settings.resolve({"context": context}, os.environ), as_json)

    @cli.command()
    def pull(
        model: PullArgument,
        revision: RevisionFlag = None,
        cache_dir: CacheFlag = None,
        as_json: JsonFlag = False,
    ) -> None:
        """Download a model to huggingface_hub's cache, or prepare the sample. Ctrl-C keeps what was downloaded."""
        commands.pull(Settings.resolve(locals(), os.environ), as_json, console)


def local_backend(settings: Settings, console: Console) -> LocalBackend:
    """The backend over a model of this process. Raises UnknownModelError for a name that cannot be loaded."""
    if settings.model != "auto":
        registry.resolve(settings.model)
    loader = partial(open_model, settings.cache_dir, settings.threads)
    manager = ModelManager(loader, LoadReporter(console), idle_seconds=60.0 * settings.idle_minutes)
    return LocalBackend(manager, settings.load_options(), partial(remember_model, settings.cache_dir))


def run_server(settings: Settings, console: Console) -> None:
    """Serve the page until a signal."""
    set_up_logging(settings.log_level, console)
    from granite_demo.server.run import address, bind, serve

    # Before the imports of several seconds: a port in use is told at once.
    listener = bind(settings.host, settings.port)
    backend = local_backend(settings, console)
    console.print("granite-demo is starting.", highlight=False)
    from granite_demo.server.app import create_app
    from granite_demo.ui.models import Access

    def announce() -> None:
        console.print(f"granite-demo is at {address(listener)} (Ctrl-C stops it).", highlight=False, markup=False)

    access = Access(settings.public, settings.admin_token)
    serve(create_app(backend, access), backend, listener, announce)


def run_bench(settings: Settings, tokens: int, rounds: int, console: Console) -> None:
    """Print the measurements to standard output."""
    set_up_logging("warning", console)
    from granite_demo import bench

    backend = local_backend(settings, console)
    try:
        ready = backend.wait_until_ready()
        results = bench.compare(backend, ready, tokens, rounds)
    finally:
        backend.close()
    startup = bench.measure_startup(
        settings.as_flags("model", "device", "dtype", "quantization", "attention", "threads", "cache_dir")
    )
    title = f"{ready.loaded.spec.title}, greedy, {tokens} new tokens, medians of {rounds}"
    print_bench(results, startup, title, ready.loaded.placement.facts)
