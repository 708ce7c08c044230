"""What the terminal shows: log lines, and a bar while a model gets ready. Everything goes to standard error."""

import logging
from typing import TYPE_CHECKING

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from granite_demo.types import ModelStatus

if TYPE_CHECKING:
    from granite_demo.bench import Measurement, Startup

log = logging.getLogger(__name__)


def set_up_logging(level: str, console: Console) -> None:
    """Send this package's log to ``console``. Other packages keep their warnings."""
    handler = RichHandler(console=console, show_path=False, rich_tracebacks=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", datefmt="%X", handlers=[handler])
    logging.getLogger("granite_demo").setLevel(level.upper())


def progress_bar(console: Console) -> Progress:
    """A bar with a description and a ``detail`` field, gone when it ends; nothing where there is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class LoadReporter:
    """Hears a model's states: a bar on a terminal, a log line for each stage."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task: TaskID | None = None
        self._stage = ""

    def __call__(self, status: ModelStatus) -> None:
        """Show ``status``. Called from the loading thread."""
        if status.stage in ("ready", "failed"):
            self._progress.stop()
            self._task = None
            self._tell_end(status)
            return
        if self._task is None:
            self._task = self._progress.add_task("", total=None, detail="")
            self._progress.start()
        if status.stage != self._stage:
            self._stage = status.stage
            log.info("%s: %s", status.model, status.stage)
        completed = status.fraction or 0.0
        total = None if status.fraction is None else 1.0
        self._progress.update(
            self._task, description=status.stage, completed=completed, total=total, detail=status.detail
        )

    def _tell_end(self, status: ModelStatus) -> None:
        self._stage = ""
        if status.stage == "failed":
            log.error("%s is not ready. %s", status.model, status.detail)
            return
        for name, value, reason in status.facts:
            log.info("%s: %s (%s)", name, value, reason)
        log.info("%s is ready.", status.title)


def print_bench(
    results: "list[Measurement]", startup: "Startup", title: str, facts: tuple[tuple[str, str, str], ...]
) -> None:
    """Write the measurements to standard output, the first result being what the others are compared with."""
    console = Console()
    table = Table(title=title, title_justify="left")
    for column in ("way", "tokens/s", "ratio", "first token, s"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for result in results:
        ratio = result.tokens_per_second / results[0].tokens_per_second
        table.add_row(result.name, f"{result.tokens_per_second:.2f}", f"{ratio:.3f}", f"{result.ttft:.2f}")
    console.print(table)
    for name, value, reason in facts:
        console.print(f"{name}: {value} ({reason})", highlight=False)
    engine, page = results[1].tokens_per_second, results[2].tokens_per_second
    console.print(f"The page takes {max(0.0, 1 - page / engine):.1%} of the engine's speed.", highlight=False)
    console.print(
        f"Start: page after {startup.page:.1f} s, model ready after {startup.ready:.1f} s, "
        f"first token in the page after {startup.first_token:.1f} s.",
        highlight=False,
    )
