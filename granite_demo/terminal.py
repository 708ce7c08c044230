"""What the terminal shows: log lines, and a bar while a model gets ready. Everything goes to standard error."""

import logging
import re
from collections.abc import Iterable

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from granite_demo.status import ModelStatus

log = logging.getLogger(__name__)

MASK = "***"
HUB_TOKEN = r"hf_[A-Za-z0-9]{20,}"


class _Masked(logging.Formatter):
    """Says nothing secret, in messages and in tracebacks; and no character of either moves the terminal's cursor."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__("%(message)s", "%X")
        known = sorted(filter(None, secrets), key=len, reverse=True)
        self._secret = re.compile("|".join([*map(re.escape, known), HUB_TOKEN]))

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        text = self._secret.sub(MASK, super().format(record))
        return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)


def set_up_logging(level: str, console: Console, secrets: Iterable[str] = ()) -> None:
    """Send this package's log to ``console``, without ``secrets``. Other packages keep their warnings."""
    handler = RichHandler(console=console, show_path=False, rich_tracebacks=False)
    handler.setFormatter(_Masked(secrets))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
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
