"""The commands ``models``, ``fits`` and ``pull``. They print tables or JSON. Only ``pull`` may import torch."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import typer
from rich.console import Console
from rich.text import Text

from granite_demo.backends.remote.backend import RemoteBackend
from granite_demo.backends.remote.endpoints import CONNECT_SECONDS
from granite_demo.cli import flags
from granite_demo.cli.composition import remote_backend
from granite_demo.cli.terminal import print_json, print_table, progress_bar, standard_output
from granite_demo.errors import ConfigurationError, GraniteDemoError, InvalidRequestError
from granite_demo.hub import download, sample
from granite_demo.hub import gguf as hub_gguf
from granite_demo.hub.fit import find_fit
from granite_demo.hub.repository import describe
from granite_demo.loading.device import choose_device
from granite_demo.loading.source import find_source, no_llama
from granite_demo.models import catalogue, registry
from granite_demo.models.catalogue import ModelSpec
from granite_demo.models.checkpoint import OwnQuantization, own_quantization, read_checkpoint
from granite_demo.models.config import Shape, count_parameters, read_config
from granite_demo.models.devices import DeviceMemory, find_devices
from granite_demo.models.gguf_header import GgufHeader, read_header
from granite_demo.models.gguf_memory import plan_gguf
from granite_demo.models.memory import (
    Plan,
    Precision,
    parse_memory,
    plan,
    weight_bytes,
)
from granite_demo.settings import Settings
from granite_demo.types.load_options import LoadStage, Report
from granite_demo.types.model_status import gigabytes

PLANNED_PRECISIONS: tuple[Precision, ...] = ("bf16", "int8", "int4")
COLOURS = {"fits": "green", "tight": "yellow", "does not fit": "red"}
INTERRUPTED_STATUS = 130
"""The exit code after Ctrl-C, as in a shell."""

Plans: TypeAlias = Sequence[tuple[DeviceMemory, Sequence[Plan]]]
"""For each device, a plan in each precision."""


def add_model_commands(cli: typer.Typer, console: Console) -> None:
    """Add the commands. Progress goes to ``console``."""

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
        """Download the files of a model that serve would load: of a hub model into the cache of huggingface_hub.

        Ctrl-C keeps the downloaded part.
        """
        refuse_url(url, "A server downloads its models itself: start it with the name of the model.")
        pull_model(replace(settings, model=model), as_json, console)


def show_models(
    settings: Settings, as_json: bool, *, devices: Sequence[DeviceMemory] | None = None, hub_cache: Path | None = None
) -> None:
    """Print every model of the registry with its size, whether it is on this machine, and whether it fits."""
    # As for a load: the first GPU, and all of them for a model that is too large for one.
    devices = devices or find_devices()
    best = [device for device in devices if device.device in ("cuda:0", "cuda")] or devices[:1]
    rows = [_model_row(spec, best, settings, hub_cache) for spec in catalogue.MODELS.values()]
    if as_json:
        print_json({"devices": [asdict(device) for device in best], "models": rows})
        return
    columns = ("model", "params", "bf16", "int4", "context", "here", "mark")
    print_table(columns, _lines(rows), left=("model", "here", "mark"))
    standard_output().print(f"The marks are for {' or '.join(map(str, best))} and {_wanted(settings)}.")


def _lines(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str | Text, ...]]:
    """The rows of the table, under a heading for each family."""
    family = None
    for row in rows:
        if row["family"] != family:
            family = row["family"]
            yield (Text(str(family), "bold"),)
        size = f"{row['parameters'] / 1e9:.1f}B" if row["parameters"] >= 1e9 else f"{row['parameters'] / 1e6:.0f}M"
        sizes = [gigabytes(row[key]) for key in ("bf16_bytes", "int4_bytes")]
        mark = _coloured(row["mark"], f", {row['precision']}" if row["precision"] else "")
        yield (row["name"], size, *sizes, f"{row['context']:,}", "yes" if row["cached"] else "", mark)


def _model_row(
    spec: ModelSpec, best: Sequence[DeviceMemory], settings: Settings, hub_cache: Path | None
) -> dict[str, Any]:
    shape = shape_of(spec)
    gguf = best[0].device == "cpu" and not no_llama()
    found = find_fit(spec, best, gguf, settings.context or None, hub_cache)
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
        "device": found.device,
        "precision": found.precision,
        "mark": found.mark,
        "reason": found.reason,
    }


def _is_here(spec: ModelSpec, cache_dir: Path, hub_cache: Path | None) -> bool:
    if spec.repo_id:
        return hub_gguf.is_cached(spec, hub_cache) or download.cached(spec.repo_id, cache_dir=hub_cache) is not None
    folders = (sample.FOLDER, sample.GGUF_FOLDER)
    return any((cache_dir / folder / sample.MANIFEST).is_file() for folder in folders)  # written last


def show_remote_models(settings: Settings, as_json: bool) -> None:
    """Print the models of the servers. Raises GraniteDemoError if no server answers."""
    with closing(remote_backend(settings)) as backend:
        backend.wait_until_ready()
        backend.endpoints.wait(CONNECT_SECONDS, for_all=True)
        rows = list(_remote_rows(backend))
    if as_json:
        print_json(rows)
        return
    columns = ("model", "context", "server")
    lines = [(row["name"], f"{row['context']:,}" if row["context"] else "unknown", row["server"]) for row in rows]
    print_table(columns, lines, left=columns)


def _remote_rows(backend: RemoteBackend) -> Iterator[dict[str, Any]]:
    for endpoint in backend.endpoints.all:
        for served in endpoint.models:
            yield {"name": served.name, "context": served.context_length, "server": endpoint.address}


def refuse_url(url: str | None, why: str) -> None:
    """Raise ConfigurationError with ``why`` if a command that uses no server got a ``url``."""
    if url is not None:
        raise ConfigurationError(f"--url cannot be used here. {why}")


def shape_of(spec: ModelSpec) -> Shape:
    """The shape of the model. Raises GraniteDemoError for a folder without a usable configuration."""
    if spec.shape is not None:
        return spec.shape
    return Shape.from_config(read_config(spec.path or Path()))


def show_fits(
    model: str | None,
    memory: str | None,
    settings: Settings,
    as_json: bool,
    *,
    devices: Sequence[DeviceMemory] | None = None,
) -> None:
    """Print how ``model``, or each model, fits into ``memory``, or into each device of this machine."""
    specs = [registry.resolve(model)] if model else list(catalogue.MODELS.values())
    subjects = [_subject(spec, settings) for spec in specs]
    if memory is not None:
        devices = [_typed_in(memory)]
    devices = devices or find_devices()
    context = settings.context or None
    by_model = [[(device, subject.plans(device.free, context)) for device in devices] for subject in subjects]
    if as_json:
        rows = [_fit_row(*row) for row in zip(subjects, by_model, strict=True)]
        print_json({"devices": [asdict(device) for device in devices], "models": rows})
    elif model:
        _print_one(subjects[0], by_model[0], settings)
    else:
        _print_all(specs, by_model, settings)


def _typed_in(memory: str) -> DeviceMemory:
    try:
        return DeviceMemory("typed in", memory.strip(), parse_memory(memory))
    except InvalidRequestError as error:
        raise ConfigurationError(f"--memory: {error.user_text}") from None


@dataclass(frozen=True, slots=True)
class _Subject:
    """A model to plan: its shape or the header of its file, and how it is quantized already."""

    spec: ModelSpec
    parameters: int
    context_length: int
    shape: Shape | None = None
    header: GgufHeader | None = None
    quantization: OwnQuantization | None = None
    stored: int = 0
    """The bytes of the weights of a quantized checkpoint."""

    def plans(self, free: int, context: int | None) -> list[Plan]:
        """Return a plan for ``free`` bytes in each precision in which the model can be loaded."""
        if self.header:
            return [plan_gguf(self.header, free, context)]
        assert self.shape
        if own := self.quantization:
            kind: Precision = "int8" if own.label == "int8" else "int4"
            return [plan(self.shape, kind, free, context, stored=self.stored, label=own.label)]
        return [plan(self.shape, precision, free, context) for precision in PLANNED_PRECISIONS]


def _subject(spec: ModelSpec, settings: Settings) -> _Subject:
    """Read what there is to know of ``spec`` on this machine, or on the hub without a download of its weights."""
    own, stored = None, 0
    if spec.path and (file := hub_gguf.file_in(spec.path)):
        header = read_header(file)
        elements = sum(prod(tensor.dims) for tensor in header.tensors)
        return _Subject(spec, elements, header.context_length, header=header)
    if spec.path and own_quantization(config := read_config(spec.path)):
        checkpoint = read_checkpoint(spec.path)
        own, stored = own_quantization(config), checkpoint.weight_bytes
    elif spec.repo_id and spec.name not in catalogue.MODELS:
        found = describe(spec, settings.revision or None, lambda *stage: None, threading.Event(), sizes=True)
        spec, own, stored = found.spec, found.quantization, found.file_bytes
        if spec.shape is None:
            raise ConfigurationError(f"{spec.name} has an architecture that fits cannot plan. It can still be loaded.")
    shape = shape_of(spec)
    return _Subject(spec, count_parameters(shape).total, shape.context_length, shape, None, own, stored)


def _fit_row(subject: _Subject, plans: Plans) -> dict[str, Any]:
    spec = subject.spec
    return {
        "name": spec.name,
        "repo_id": spec.repo_id,
        "parameters": subject.parameters,
        "context": subject.context_length,
        "unverified": sorted(spec.unverified),
        "plans": [{"device": device.device, **asdict(answer)} for device, answers in plans for answer in answers],
    }


def _print_one(subject: _Subject, plans: Plans, settings: Settings) -> None:
    output, spec = standard_output(), subject.spec
    title = f"{spec.title}, {subject.parameters:,} parameters, context {subject.context_length:,}"
    output.print(title, style="bold")
    if settings.context > subject.context_length:
        output.print(f"{settings.context:,} tokens are more than the model can hold: the plan is for its full context.")
    for device, answers in plans:
        output.print(f"\n{device}", style="bold")
        tokens = f"KV at {answers[0].context:,}"
        columns = ("", "weights", "KV/token", tokens, "other", "total", "longest", "mark")
        print_table(columns, map(_plan_row, answers), left=("", "mark"))
        for answer in answers:
            output.print(f"{answer.precision}: {answer.reason}")
    if spec.unverified:
        output.print(f"\nNot confirmed by a published file: {', '.join(sorted(spec.unverified))}.")


def _plan_row(answer: Plan) -> tuple[str | Text, ...]:
    sizes = (answer.weights, answer.kv_at_context, answer.state + answer.overhead, answer.total)
    weights, cache, other, total = map(gigabytes, sizes)
    per_token, longest = f"{answer.kv_per_token / 1000:,.1f} kB", f"{answer.longest_context:,}"
    return answer.precision, weights, per_token, cache, other, total, longest, _coloured(answer.mark)


def _print_all(specs: Sequence[ModelSpec], by_model: Sequence[Plans], settings: Settings) -> None:
    output = standard_output()
    columns = ("model", *PLANNED_PRECISIONS)
    for at, (device, _) in enumerate(by_model[0]):
        output.print(f"{device}, {_wanted(settings)}", style="bold")
        marks = [[_coloured(answer.mark, _limit(answer)) for answer in plans[at][1]] for plans in by_model]
        print_table(columns, [(spec.name, *row) for spec, row in zip(specs, marks, strict=True)], left=columns)
        output.print()


def _limit(answer: Plan) -> str:
    return f", {answer.longest_context:,}" if answer.mark == "tight" else ""


def _wanted(settings: Settings) -> str:
    return f"a context of {settings.context:,} tokens" if settings.context else "the full context of each model"


def _coloured(mark: str, more: str = "") -> Text:
    return Text.assemble((mark, COLOURS[mark]), more)


def pull_model(settings: Settings, as_json: bool, console: Console) -> None:
    """Download the files of ``settings.model`` that ``serve`` would load, and print where they are.

    Exits with 130 after Ctrl-C.
    """
    spec, options = registry.resolve(settings.model), settings.load_options()
    if spec.path:
        raise ConfigurationError(f"{spec.path} is on this machine: there is nothing to download.")
    if not spec.repo_id and settings.revision:
        raise ConfigurationError(f"{spec.name} has no revisions. Remove --revision.")
    with _interruptible() as cancelled:
        try:
            with _progress(spec.name, console) as report:
                source = find_source(settings.cache_dir, options, choose_device(options).value, report, cancelled)
        except GraniteDemoError:  # pip gets Ctrl-C, too, and then fails for its own reason
            if not cancelled.is_set():
                raise
            kept = "The downloaded part is kept: the same command continues." if spec.repo_id else ""
            console.print(f"{spec.name} was cancelled. {kept}".strip(), markup=False, highlight=False)
            raise SystemExit(INTERRUPTED_STATUS) from None
    if as_json:
        where = {"folder": str(source.folder), "gguf": str(source.gguf) if source.gguf else None}
        print_json({"name": spec.name, "repo_id": spec.repo_id, **where, "commit": source.commit})
        return
    output = standard_output()
    output.print(f"{spec.name} is in {source.gguf or source.folder}", soft_wrap=True)
    if source.commit:
        output.print(f"commit {source.commit}")
    if source.gguf_because:
        output.print(f"GGUF file: {'' if source.gguf else 'not used: '}{source.gguf_because}", soft_wrap=True)


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
    """A bar on a terminal, otherwise a line for each stage. The last report stays on the screen."""
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
