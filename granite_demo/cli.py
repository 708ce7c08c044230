"""The command line, and the composition root: the one place that puts settings, manager, backend and server together.

Heavy packages are imported inside the commands, so that ``--help`` and mistakes in flags answer at once.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from granite_demo import commands, registry
from granite_demo.backends import Backend, LocalBackend
from granite_demo.bench.options import BenchOptions
from granite_demo.choosing import remember_model
from granite_demo.errors import ConfigurationError, GraniteDemoError
from granite_demo.manager import Listener, ModelManager
from granite_demo.opening import follow, open_model
from granite_demo.settings import Settings, help_text
from granite_demo.tensor_parallel import ALONE, Group
from granite_demo.terminal import LoadReporter, set_up_logging


def _flag(name: str) -> Any:
    return typer.Option(help=help_text(name), show_default=False)


ModelFlag = Annotated[str | None, _flag("model")]
HostFlag = Annotated[str | None, _flag("host")]
PortFlag = Annotated[int | None, _flag("port")]
DeviceFlag = Annotated[str | None, _flag("device")]
DtypeFlag = Annotated[str | None, _flag("dtype")]
QuantizationFlag = Annotated[str | None, _flag("quantization")]
AttentionFlag = Annotated[str | None, _flag("attention")]
EngineFlag = Annotated[str | None, _flag("engine")]
CompileFlag = Annotated[str | None, _flag("compile")]
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
SuiteFlag = Annotated[
    str | None,
    typer.Option(help="load, decode, ttft, page, several with commas, or all. Default: all, without page if large."),
]
UsersFlag = Annotated[
    str | None, typer.Option(help="Users at the same time. Default: 1,4,16,64 on a GPU, 1,4 on a CPU.")
]
PromptsFlag = Annotated[
    str | None, typer.Option(help="Prompt lengths of ttft. Default: 128,1024,8192 on a GPU, 128,1024 on a CPU.")
]
TokensFlag = Annotated[
    int | None,
    typer.Option(min=2, max=4096, help="New tokens of each answer. Default: 256 on a GPU, 12 on a CPU."),
]
RoundsFlag = Annotated[int, typer.Option(min=1, max=20, help="Turns of each way; the medians are shown.")]
JsonFileFlag = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write every figure as JSON; - prints it instead of the tables."),
]
PlotFlag = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw a picture, such as bench.png. Needs matplotlib.")
]
BundleArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="An answer saved from the page; - is standard input.")
]


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
        engine: EngineFlag = None,
        compile: CompileFlag = None,
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

    add_bench_command(cli, console)
    add_replay_command(cli, console)
    add_model_commands(cli, console)
    return cli


def add_bench_command(cli: typer.Typer, console: Console) -> None:
    """The command that measures."""

    @cli.command()
    def bench(
        model: ModelFlag = None,
        suite: SuiteFlag = None,
        users: UsersFlag = None,
        prompts: PromptsFlag = None,
        tokens: TokensFlag = None,
        rounds: RoundsFlag = 3,
        json_file: JsonFileFlag = None,
        plot_file: PlotFlag = None,
        device: DeviceFlag = None,
        dtype: DtypeFlag = None,
        quantization: QuantizationFlag = None,
        attention: AttentionFlag = None,
        engine: EngineFlag = None,
        compile: CompileFlag = None,
        context: ContextFlag = None,
        threads: ThreadsFlag = None,
        cache_dir: CacheFlag = None,
    ) -> None:
        """Measure this machine beside transformers' documented ways and beside what its memory allows.

        With the sample model on two CPU cores it takes about three minutes.
        """
        settings = Settings.resolve(locals(), os.environ)
        asked = BenchOptions.parse(suite, users, prompts, tokens, rounds, json_file, plot_file)
        run_bench(settings, asked, console)


def add_replay_command(cli: typer.Typer, console: Console) -> None:
    """The command that makes an answer again."""

    @cli.command()
    def replay(
        file: BundleArgument,
        model: ModelFlag = None,
        revision: RevisionFlag = None,
        device: DeviceFlag = None,
        dtype: DtypeFlag = None,
        quantization: QuantizationFlag = None,
        attention: AttentionFlag = None,
        engine: EngineFlag = None,
        threads: ThreadsFlag = None,
        cache_dir: CacheFlag = None,
    ) -> None:
        """Make a saved answer again and tell where it first differs. The exit code is 0 if it does not, else 1."""
        settings = Settings.resolve(locals(), os.environ)
        raise typer.Exit(0 if run_replay(file, settings, model is not None, console) else 1)


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


def local_backend(settings: Settings, console: Console, group: Group = ALONE) -> LocalBackend:
    """The backend over a model of this process. Raises UnknownModelError for a name that cannot be loaded."""
    manager = model_manager(settings, LoadReporter(console), 60.0 * settings.idle_minutes, group=group)
    return LocalBackend(manager, settings.load_options(), partial(remember_model, settings.cache_dir), group.fixed)


def model_manager(settings: Settings, listener: Listener, idle_seconds: float = 0.0, **opening: Any) -> ModelManager:
    """The manager that loads as ``settings`` say. Raises UnknownModelError for a name that cannot be loaded."""
    if settings.model != "auto":
        registry.resolve(settings.model)
    loader = partial(open_model, settings.cache_dir, settings.threads, **opening)
    return ModelManager(loader, listener, idle_seconds)


def run_server(settings: Settings, console: Console) -> None:
    """Serve the page until a signal."""
    set_up_logging(settings.log_level, console)
    group = Group(settings.processes, settings.rank, settings.local_rank)
    if group.size > 1:
        # As continuous batching wants it, which asks for it too late: NCCL reads this when the processes meet.
        os.environ.setdefault("NCCL_GRAPH_MIXING_SUPPORT", "0")
    if not group.leads:
        return follow(settings.cache_dir, settings.threads, settings.load_options(), group)
    from granite_demo.server.run import address, bind, serve

    # Before the imports of several seconds: a port in use is told at once.
    listener = bind(settings.host, settings.port)
    backend = local_backend(settings, console, group)
    console.print("granite-demo is starting.", highlight=False)
    if group.size > 1:
        with group.together():
            backend.wait_until_ready()
    from granite_demo.server.app import create_app
    from granite_demo.ui.models import Access

    def announce() -> None:
        console.print(f"granite-demo is at {address(listener)} (Ctrl-C stops it).", highlight=False, markup=False)

    access = Access(settings.public, settings.admin_token)
    serve(create_app(backend, access), backend, listener, announce)
    group.leave()


def run_bench(settings: Settings, asked: BenchOptions, console: Console) -> None:
    """Measure, then print the report and write the files that were asked for."""
    set_up_logging("warning", console)
    if settings.processes > 1:
        raise ConfigurationError("bench measures one process. Start it without torchrun.")
    from granite_demo.bench import output, suites
    from granite_demo.bench.load import StageClock

    def tell(text: str) -> None:
        console.print(text, style="dim", markup=False, highlight=False)

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
    file: str, settings: Settings, chosen: bool, console: Console, opened: Callable[..., Backend] = local_backend
) -> bool:
    """Make the answer in ``file`` again, with its own model unless one was ``chosen``; whether it is the same."""
    set_up_logging("warning", console)
    from granite_demo import bundle, replay

    answer = bundle.read_file(file)
    with closing(opened(settings if chosen else replay.settings_for(answer, settings), console)) as backend:
        outcome = asyncio.run(replay.replay(backend, answer))
    replay.show(outcome)
    return outcome.equal
