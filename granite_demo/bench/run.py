"""Runs the suites that were asked for, one after another, and puts the report together."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec

from granite_demo.backends.local import LocalBackend
from granite_demo.backends.model_manager import ModelManager, ReadyModel
from granite_demo.bench import baselines
from granite_demo.bench.options import SUITES, BenchOptions, Sizes
from granite_demo.bench.report import Report, describe
from granite_demo.bench.suites import decode, load, ttft
from granite_demo.bench.suites.load import StageClock
from granite_demo.errors import ConfigurationError
from granite_demo.loading.load import LoadedModel
from granite_demo.types.load_options import LoadOptions

SMALL_BYTES = 4_000_000_000
"""Weights up to which everything is measured by default. The page starts a second process with the model again."""
SERVER_PACKAGES = ("gradio", "gradio_client", "fastapi", "uvicorn", "httpx")

Tell = Callable[[str], None]


def check_packages(suites: Sequence[str]) -> None:
    """Raise ConfigurationError if ``page`` was asked for and cannot run."""
    if "page" in suites and (missing := missing_packages()):
        raise ConfigurationError(f"The suite page needs {', '.join(missing)}. Run: pip install {' '.join(missing)}")


def missing_packages() -> list[str]:
    """What the suite ``page`` needs and is not installed."""
    return [name for name in SERVER_PACKAGES if find_spec(name) is None]


def choose_suites(asked: Sequence[str], weight_bytes: int) -> tuple[tuple[str, ...], str]:
    """The suites to run, those that were ``asked`` for or the default, and a note on what the default left out."""
    if asked:
        return tuple(asked), ""
    without_page = tuple(suite for suite in SUITES if suite != "page")
    if weight_bytes > SMALL_BYTES:
        return without_page, "The page was not measured: the model is large. --suite page does it."
    if missing := missing_packages():
        return without_page, f"The page was not measured: {', '.join(missing)} is not installed."
    return SUITES, ""


def run(
    manager: ModelManager,
    options: LoadOptions,
    clock: StageClock,
    asked: BenchOptions,
    serve_arguments: Sequence[str] = (),
    tell: Tell = lambda text: None,
) -> Report:
    """Measure a model of ``manager``, whose listener is ``clock``. ``serve_arguments`` start a server of its own."""
    check_packages(asked.suites)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    begun = time.perf_counter()
    rounds = asked.rounds if not asked.suites or "load" in asked.suites else 1
    found, ready = load.measure(manager, options, clock, rounds, lambda text: tell(f"load, {text}"))
    suites, note = choose_suites(asked.suites, ready.loaded.weight_bytes)
    sizes = asked.sizes(ready.loaded.placement.device)
    report = describe(ready, sizes, suites, started)
    report.notes += filter(None, [note])
    if "load" in suites:
        report.load = found
        report.seconds["load"] = time.perf_counter() - begun
    copies: list[LoadedModel] = []
    if suites != ("load",):
        tell("loading the model again, for the documented ways")
        copies, left_out = baselines.load_copies(ready.loaded, options)
        report.notes += left_out
    try:
        _measure(report, ready, copies, sizes, tell)
        if "page" in suites:
            with _timed(report, "page"):
                _measure_page(report, LocalBackend(manager, options), ready, copies, sizes, tell)
    finally:
        del ready, copies
        manager.close()
    if "page" in suites:
        # Last, with this process's model gone: both may not fit.
        with _timed(report, "start"):
            _measure_startup(report, serve_arguments, tell)
    return report


def _measure(report: Report, ready: ReadyModel, copies: Sequence[LoadedModel], sizes: Sizes, tell: Tell) -> None:
    suites = report.settings["suites"]
    if "decode" in suites:
        with _timed(report, "decode"):
            report.decode, notes = decode.measure(ready, copies, sizes, lambda text: tell(f"decode, {text}"))
        report.notes += notes
    if "ttft" in suites:
        with _timed(report, "ttft"):
            report.ttft, notes = ttft.measure(ready, copies, sizes, lambda text: tell(f"ttft, {text}"))
        report.notes += notes


def _measure_page(
    report: Report,
    backend: LocalBackend,
    ready: ReadyModel,
    copies: Sequence[LoadedModel],
    sizes: Sizes,
    tell: Tell,
) -> None:
    from granite_demo.bench.suites import page

    report.page, notes = page.compare(backend, ready, copies, sizes, lambda text: tell(f"page, {text}"))
    report.notes += notes


def _measure_startup(report: Report, serve_arguments: Sequence[str], tell: Tell) -> None:
    from granite_demo.bench.suites import page

    tell("start of a server")
    report.startup = page.measure_startup(serve_arguments)


@contextmanager
def _timed(report: Report, name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    report.seconds[name] = time.perf_counter() - begun
