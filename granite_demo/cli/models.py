"""The commands about models: which there are, what fits where, and getting one. Each is a table, or JSON.

The answer goes to standard output, progress to ``console``. Imports no torch.
"""

import json
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import typer
from rich.console import Console
from rich.table import Table

from granite_demo.backends.remote.backend import RemoteBackend
from granite_demo.backends.remote.endpoints import CONNECT_SECONDS
from granite_demo.cli import flags
from granite_demo.cli.composition import remote_backend
from granite_demo.cli.terminal import progress_bar
from granite_demo.errors import ConfigurationError, CorruptModelError, GraniteDemoError, InvalidRequestError
from granite_demo.hub import download, sample
from granite_demo.models import catalogue, registry
from granite_demo.models.catalogue import ModelSpec
from granite_demo.models.config import Shape, count_parameters
from granite_demo.models.devices import DeviceMemory, find_devices
from granite_demo.models.memory import (
    Choice,
    Plan,
    Precision,
    best_precision,
    gigabytes,
    parse_memory,
    plan,
    weight_bytes,
)
from granite_demo.settings import Settings
from granite_demo.types.load_options import LoadStage, Report

PRECISIONS: tuple[Precision, ...] = ("bf16", "int8", "int4")
COLOURS = {"fits": "green", "tight": "yellow", "does not fit": "red"}
INTERRUPTED = 130  # what a shell reports after Ctrl-C
WIDE = 1000  # columns where nobody looks, such as in a pipe: sentences stay whole

Plans: TypeAlias = Sequence[tuple[DeviceMemory, Sequence[Plan]]]
"""For each place, a plan in each precision."""


def add_model_commands(cli: typer.Typer, console: Console) -> None:
    """The commands that start no model. Progress goes to ``console``."""

    @cli.command()
    @flags.with_tables
    def models(settings: Settings, as_json: flags.AsJson = False) -> None:
        """List the models: size, whether they are here, and whether they fit this machine. With --url: a server's."""
        show = show_remote_models if settings.backend else show_models
        show(settings, as_json)

    @cli.command()
    @flags.with_tables
    def fits(
        settings: Settings,
        model: flags.ModelToFit = None,
        memory: flags.Memory = None,
        as_json: flags.AsJson = False,
        url: flags.NoUrl = None,
    ) -> None:
        """Show the memory that a model needs in each precision, its longest context, and whether it fits."""
        refuse_url(url, "fits is about this machine. granite-demo models --url lists a server's models.")
        show_fits(model, memory, settings, as_json)

    @cli.command()
    @flags.with_tables
    def pull(
        settings: Settings, model: flags.ModelToPull, as_json: flags.AsJson = False, url: flags.NoUrl = None
    ) -> None:
        """Download a model to the cache of huggingface_hub, or prepare the sample. Ctrl-C keeps the downloaded part."""
        refuse_url(url, "A server downloads its models itself: start it with the name of the model.")
        pull_model(replace(settings, model=model), as_json, console)


def show_models(
    settings: Settings, as_json: bool, *, places: Sequence[DeviceMemory] | None = None, hub_cache: Path | None = None
) -> None:
    """Print every model of the registry with its size, whether it is here already, and whether it fits."""
    # As a load chooses: the first GPU, and all of them for what one cannot hold.
    places = places or find_devices()
    best = [place for place in places if place.device in ("cuda:0", "cuda")] or places[:1]
    rows = [_model_row(spec, best, settings, hub_cache) for spec in catalogue.MODELS.values()]
    if as_json:
        _print_json({"devices": [asdict(place) for place in best], "models": rows})
        return
    table = _table("model", "params", "bf16", "int4", "context", "here", "mark", left=("model", "here", "mark"))
    family = None
    for row in rows:
        if row["family"] != family:
            family = row["family"]
            table.add_row(f"[bold]{family}[/]")
        size = f"{row['parameters'] / 1e9:.1f}B" if row["parameters"] >= 1e9 else f"{row['parameters'] / 1e6:.0f}M"
        mark = _coloured(row["mark"], f", {row['precision']}" if row["precision"] else "")
        sizes = [gigabytes(row[key]) for key in ("bf16_bytes", "int4_bytes")]
        table.add_row(row["name"], size, *sizes, f"{row['context']:,}", "yes" if row["cached"] else "", mark)
    output = _output()
    output.print(table)
    output.print(f"The mark is for {' or '.join(map(str, best))} and {_wanted(settings)}.", markup=False)


def _model_row(
    spec: ModelSpec, best: Sequence[DeviceMemory], settings: Settings, hub_cache: Path | None
) -> dict[str, Any]:
    shape = shape_of(spec)
    place, choice = _choose(shape, best, settings.context or None)
    return {
        "name": spec.name,
        "title": spec.title,
        "family": spec.family,
        "repo_id": spec.repo_id,
        "licence": spec.licence,
        "parameters": count_parameters(shape).total,
        "bf16_bytes": weight_bytes(shape, "bf16"),
        "int4_bytes": weight_bytes(shape, "int4"),
        "context": shape.context_length,
        "cached": _is_here(spec, settings.cache_dir, hub_cache),
        "device": place.device,
        "precision": choice.precision,
        "mark": choice.plan.mark,
        "reason": choice.reason,
    }


def _choose(shape: Shape, best: Sequence[DeviceMemory], context: int | None) -> tuple[DeviceMemory, Choice]:
    choices = [(place, best_precision(shape, place.free, context)) for place in best]
    return next((pair for pair in choices if pair[1].precision), choices[-1])


def _is_here(spec: ModelSpec, cache_dir: Path, hub_cache: Path | None) -> bool:
    if spec.repo_id:
        return download.cached(spec.repo_id, cache_dir=hub_cache) is not None
    return (cache_dir / sample.FOLDER / sample.MANIFEST).is_file()  # written last


def refuse_url(url: str | None, why: str) -> None:
    """Raise ConfigurationError with ``why`` where an address was given to a command that asks no server."""
    if url is not None:
        raise ConfigurationError(f"--url cannot be used here. {why}")


def shape_of(spec: ModelSpec) -> Shape:
    """The model's shape. Raises what is wrong with a folder that has none."""
    if spec.shape is not None:
        return spec.shape
    path = (spec.path or Path()) / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptModelError(f"{path} cannot be read as JSON. Get the file again.") from error
    return Shape.from_config(config)


def show_fits(
    model: str | None,
    memory: str | None,
    settings: Settings,
    as_json: bool,
    *,
    places: Sequence[DeviceMemory] | None = None,
) -> None:
    """Print what of ``model``, or of every model, fits into ``memory``, or into each place of this machine."""
    specs = [registry.resolve(model)] if model else list(catalogue.MODELS.values())
    shapes = [shape_of(spec) for spec in specs]
    if memory is not None:
        places = [_typed_in(memory)]
    places = places or find_devices()
    context = settings.context or None
    by_model = [
        [(place, [plan(shape, precision, place.free, context) for precision in PRECISIONS]) for place in places]
        for shape in shapes
    ]
    if as_json:
        rows = [_fit_row(*row) for row in zip(specs, shapes, by_model, strict=True)]
        _print_json({"devices": [asdict(place) for place in places], "models": rows})
    elif model:
        _print_one(specs[0], shapes[0], by_model[0], settings)
    else:
        _print_all(specs, by_model, settings)


def _typed_in(memory: str) -> DeviceMemory:
    try:
        return DeviceMemory("typed in", memory.strip(), parse_memory(memory))
    except InvalidRequestError as error:
        raise ConfigurationError(f"--memory: {error.user_text}") from None


def _fit_row(spec: ModelSpec, shape: Shape, plans: Plans) -> dict[str, Any]:
    return {
        "name": spec.name,
        "repo_id": spec.repo_id,
        "parameters": count_parameters(shape).total,
        "context": shape.context_length,
        "unverified": sorted(spec.unverified),
        "plans": [{"device": place.device, **asdict(answer)} for place, answers in plans for answer in answers],
    }


def _print_one(spec: ModelSpec, shape: Shape, plans: Plans, settings: Settings) -> None:
    output = _output()
    title = f"{spec.title}, {count_parameters(shape).total:,} parameters, context {shape.context_length:,}"
    output.print(title, style="bold", markup=False)
    if settings.context > shape.context_length:
        output.print(f"{settings.context:,} tokens are more than it can hold: all it can hold is planned for.")
    for place, answers in plans:
        output.print(f"\n{place}", style="bold", markup=False)
        tokens = f"KV at {answers[0].context:,}"
        table = _table("", "weights", "KV/token", tokens, "other", "total", "longest", "mark", left=("", "mark"))
        for answer in answers:
            sizes = (answer.weights, answer.kv_at_context, answer.state + answer.overhead, answer.total)
            weights, cache, other, total = map(gigabytes, sizes)
            per_token, longest = f"{answer.kv_per_token / 1000:,.1f} kB", f"{answer.longest_context:,}"
            table.add_row(answer.precision, weights, per_token, cache, other, total, longest, _coloured(answer.mark))
        output.print(table)
        for answer in answers:
            output.print(f"{answer.precision}: {answer.reason}", markup=False)
    if spec.unverified:
        output.print(f"\nNot confirmed by a published file: {', '.join(sorted(spec.unverified))}.", markup=False)


def _print_all(specs: Sequence[ModelSpec], by_model: Sequence[Plans], settings: Settings) -> None:
    output = _output()
    for at, (place, _) in enumerate(by_model[0]):
        output.print(f"{place}, {_wanted(settings)}", style="bold", markup=False)
        table = _table("model", *PRECISIONS, left=("model", *PRECISIONS))
        for spec, plans in zip(specs, by_model, strict=True):
            table.add_row(spec.name, *(_coloured(answer.mark, _limit(answer)) for answer in plans[at][1]))
        output.print(table)
        output.print()


def _limit(answer: Plan) -> str:
    return f", {answer.longest_context:,}" if answer.mark == "tight" else ""


def _wanted(settings: Settings) -> str:
    return f"a context of {settings.context:,} tokens" if settings.context else "all of each model's context"


def pull_model(
    settings: Settings, as_json: bool, console: Console, *, endpoint: str | None = None, hub_cache: Path | None = None
) -> None:
    """Download ``settings.model``, or prepare the sample, and print where it is. Exits with 130 after Ctrl-C."""
    spec = registry.resolve(settings.model)
    if spec.path:
        raise ConfigurationError(f"{spec.path} is a folder on this machine: there is nothing to download.")
    if not spec.repo_id and settings.revision:
        raise ConfigurationError(f"{spec.name} has no revisions. Leave --revision out.")
    commit = None
    with _interruptible() as cancelled:
        try:
            with _progress(spec.name, console) as report:
                if spec.repo_id:
                    found = download.fetch(
                        spec.repo_id,
                        settings.revision or None,
                        report,
                        cancelled,
                        cache_dir=hub_cache,
                        endpoint=endpoint,
                    )
                    folder, commit = found.folder, found.commit
                else:
                    folder = sample.ensure_sample(settings.cache_dir, report, cancelled)
        except GraniteDemoError:  # pip hears Ctrl-C, too, and then fails for its own reason
            if not cancelled.is_set():
                raise
            kept = "What has arrived is kept: the same command goes on from there." if spec.repo_id else ""
            console.print(f"{spec.name} was cancelled. {kept}".strip(), markup=False, highlight=False)
            raise SystemExit(INTERRUPTED) from None
    if as_json:
        _print_json({"name": spec.name, "repo_id": spec.repo_id, "folder": str(folder), "commit": commit})
        return
    output = _output()
    output.print(f"{spec.name} is in {folder}", markup=False, soft_wrap=True)
    if commit:
        output.print(f"commit {commit}", markup=False)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets. A second Ctrl-C ends the process at once."""
    cancelled = threading.Event()

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        cancelled.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield cancelled
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(name: str, console: Console) -> Iterator[Report]:
    """A bar on a terminal, else a line for each stage; what was reported last stays on the screen."""
    last = ("", "")
    with progress_bar(console) as progress:
        task = progress.add_task("", total=None, detail="")

        def report(stage: LoadStage, fraction: float | None, detail: str) -> None:
            nonlocal last
            if stage != last[0] and not console.is_terminal:
                console.print(f"{name}: {stage}", markup=False, highlight=False)
            last = (stage, detail)
            total = None if fraction is None else 1.0
            progress.update(task, description=stage, completed=fraction or 0.0, total=total, detail=detail)

        yield report
    if last[0]:
        console.print(f"{name}: {': '.join(last)}", markup=False, highlight=False)


def _output() -> Console:
    output = Console(highlight=False)
    return output if output.is_terminal else Console(highlight=False, width=WIDE)


def _table(*columns: str, left: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


def _coloured(mark: str, more: str = "") -> str:
    return f"[{COLOURS[mark]}]{mark}[/]{more}"


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def show_remote_models(settings: Settings, as_json: bool) -> None:
    """Print what the servers offer. Raises GraniteDemoError where none of them answers."""
    backend = remote_backend(settings)
    try:
        backend.wait_until_ready()
        backend.endpoints.wait(CONNECT_SECONDS, for_all=True)
        rows = list(_rows(backend))
    finally:
        backend.close()
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(box=None)
    for heading in ("model", "context", "server"):
        table.add_column(heading)
    for row in rows:
        context = f"{row['context']:,}" if row["context"] else "not told"
        table.add_row(row["name"], context, row["server"])
    Console(highlight=False, emoji=False, markup=False).print(table)


def _rows(backend: RemoteBackend) -> Iterator[dict[str, Any]]:
    for one in backend.endpoints.all:
        for served in one.seen.models if one.seen else ():
            yield {"name": served.name, "context": served.context_length, "server": one.shown}
