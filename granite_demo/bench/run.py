"""Runs the suites one after another and makes the report."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec

from granite_demo.backends.local import LocalBackend
from granite_demo.backends.model_manager import ModelManager, ReadyModel
from granite_demo.bench import baselines
from granite_demo.bench.measure import Progress
from granite_demo.bench.options import SUITES, BenchOptions, BenchSizes
from granite_demo.bench.report import BenchReport, describe
from granite_demo.bench.suites import decode, load, ttft
from granite_demo.bench.suites.load import StageClock
from granite_demo.errors import ConfigurationError
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models.installation import require_torch
from granite_demo.types.load_options import LoadOptions

SMALL_BYTES = 4_000_000_000
"""The default includes the suite ``page`` up to this size of the weights, because it loads the model a second time."""
SERVER_PACKAGES = ("gradio", "gradio_client", "fastapi", "uvicorn", "httpx")


def check_packages(suites: Sequence[str]) -> None:
    """Raise ConfigurationError if ``suites`` contains ``page`` and its packages are missing."""
    if "page" in suites and (missing := missing_packages()):
        raise ConfigurationError(f"The suite page needs {', '.join(missing)}. Run: pip install {' '.join(missing)}")


def missing_packages() -> list[str]:
    """Return the packages that the suite ``page`` needs and that are not installed."""
    return [name for name in SERVER_PACKAGES if find_spec(name) is None]


def choose_suites(wanted: Sequence[str], weight_bytes: int) -> tuple[tuple[str, ...], str]:
    """Return the suites to run, by default those for the size of the model, and a note if the page is left out."""
    if wanted:
        return tuple(wanted), ""
    without_page = tuple(suite for suite in SUITES if suite != "page")
    if weight_bytes > SMALL_BYTES:
        return without_page, "The page was not measured: the model is large. To measure it, use --suite page."
    if missing := missing_packages():
        return without_page, f"The page was not measured: {', '.join(missing)} is not installed."
    return SUITES, ""


def run(
    manager: ModelManager,
    load_options: LoadOptions,
    clock: StageClock,
    options: BenchOptions,
    serve_arguments: Sequence[str] = (),
    progress: Progress = lambda text: None,
) -> BenchReport:
    """Measure the model of ``manager``, whose listener is ``clock``, and close ``manager``.

    ``serve_arguments`` start the separate server of the suite ``page``. Raises GraniteDemoError.
    """
    check_packages(options.suites)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    begun = time.perf_counter()
    rounds = options.rounds if not options.suites or "load" in options.suites else 1
    found, ready = load.measure(manager, load_options, clock, rounds, lambda text: progress(f"load, {text}"))
    if ready.loaded.placement.device != "cpu":
        require_torch("The benchmark of a GPU")
    suites, note = choose_suites(options.suites, ready.loaded.weight_bytes)
    sizes = options.sizes(ready.loaded.placement.device)
    report = describe(ready, sizes, suites, started)
    report.notes += filter(None, [note])
    if "load" in suites:
        report.load = found
        report.seconds["load"] = time.perf_counter() - begun
    copies: list[LoadedModel] = []
    if suites != ("load",):
        progress("loading the model again, for the documented ways")
        copies, left_out = baselines.load_copies(ready.loaded, load_options)
        report.notes += left_out
    try:
        _measure(report, ready, copies, sizes, progress)
        if "page" in suites:
            with _timed(report, "page"):
                _measure_page(report, LocalBackend(manager, load_options), ready, copies, sizes, progress)
    finally:
        del ready, copies
        manager.close()
    if "page" in suites:
        # After this process released its model: both may not fit in memory.
        with _timed(report, "start"):
            _measure_startup(report, serve_arguments, progress)
    return report


def _measure(
    report: BenchReport, ready: ReadyModel, copies: Sequence[LoadedModel], sizes: BenchSizes, progress: Progress
) -> None:
    suites = report.settings["suites"]
    if "decode" in suites:
        with _timed(report, "decode"):
            report.decode, notes = decode.measure(ready, copies, sizes, lambda text: progress(f"decode, {text}"))
        report.notes += notes
    if "ttft" in suites:
        with _timed(report, "ttft"):
            report.ttft, notes = ttft.measure(ready, copies, sizes, lambda text: progress(f"ttft, {text}"))
        report.notes += notes


def _measure_page(
    report: BenchReport,
    backend: LocalBackend,
    ready: ReadyModel,
    copies: Sequence[LoadedModel],
    sizes: BenchSizes,
    progress: Progress,
) -> None:
    from granite_demo.bench.suites import page

    report.page, notes = page.compare(backend, ready, copies, sizes, lambda text: progress(f"page, {text}"))
    report.notes += notes


def _measure_startup(report: BenchReport, serve_arguments: Sequence[str], progress: Progress) -> None:
    from granite_demo.bench.suites import page

    progress("start of a server")
    report.startup = page.measure_startup(serve_arguments)


@contextmanager
def _timed(report: BenchReport, name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    report.seconds[name] = time.perf_counter() - begun
