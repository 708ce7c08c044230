"""The command ``bench``: measures this machine, or a running server."""

from functools import partial

import typer
from rich.console import Console

from granite_demo.backends.open_model import open_model
from granite_demo.bench.options import LIMIT, BenchOptions
from granite_demo.cli import flags
from granite_demo.cli.composition import model_manager, ready_backend
from granite_demo.cli.terminal import LoadReporter, say, set_up_logging
from granite_demo.loading.tensor_parallel import Group
from granite_demo.models.installation import require_torch
from granite_demo.settings import Settings


def add_bench_command(cli: typer.Typer, console: Console) -> None:
    """Progress goes to ``console``."""

    @cli.command()
    @flags.with_tables
    def bench(
        settings: Settings,
        suite: flags.Suite = None,
        users: flags.Users = None,
        prompts: flags.PromptsOption = None,
        tokens: flags.Tokens = None,
        rounds: flags.Rounds = 3,
        json_file: flags.JsonFile = None,
        plot_file: flags.Plot = None,
        tensor_parallel: flags.TensorParallel = None,
    ) -> None:
        """Measure this machine, and compare it with the documented use of transformers and the limit of its memory.

        With the sample model on two CPU cores, this takes about three minutes. With --url, it measures a running server
        from the point of view of its users.
        """
        options = BenchOptions.parse(suite, users, prompts, tokens, rounds, json_file, plot_file, tensor_parallel)
        run_bench(settings, options, console)


def run_bench(settings: Settings, options: BenchOptions, console: Console) -> None:
    """Measure, print the report, and write the files that ``options`` names. Raises GraniteDemoError."""
    set_up_logging("warning", console)
    options.check_processes(settings.processes)
    progress = partial(say, console)
    if settings.backend:
        from granite_demo.bench import remote

        return remote.run(ready_backend(settings, console), options, progress)
    if settings.processes > 1 or options.suites == (LIMIT,):
        require_torch("The benchmark of fused layers and tensor parallelism")
    from granite_demo.bench import fused_layers, output, run, tensor_parallel
    from granite_demo.bench.suites.load import StageClock

    opener = partial(open_model, settings.cache_dir, settings.threads, settings.load_options(), ignore_ends=True)
    if settings.processes > 1:
        group = Group(settings.processes, settings.rank, settings.local_rank)
        return tensor_parallel.run(opener, group, options, progress)
    if options.suites == (LIMIT,):
        return fused_layers.run(opener, options, progress)
    clock = StageClock(LoadReporter(console))
    manager = model_manager(settings, clock, ignore_ends=True)
    try:
        report = run.run(manager, settings.load_options(), clock, options, settings.as_flags("bench"), progress)
    finally:
        manager.close()
    output.write(report, options)
