"""Output in the terminal: answers, tables and JSON on standard output; thinking, notes, logs and progress on stderr."""

import asyncio
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from math import isfinite
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from granite_demo.backend import Backend
from granite_demo.chat.answer import Answer
from granite_demo.errors import EngineError, InvalidRequestError
from granite_demo.prompts.template_features import reasons
from granite_demo.types.events import Appendix, ReasoningDelta, StreamEvent, TextDelta, ToolCalled
from granite_demo.types.messages import Message, Switches, Thinking
from granite_demo.types.model_status import ModelStatus
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.stop import Stop

log = logging.getLogger(__name__)

WIDE = 1000
"""The columns of a pipe."""
MASK = "***"
HUB_TOKEN = r"hf_[A-Za-z0-9]{20,}"
# An answer can contain escape sequences, which a terminal would obey.
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """``text`` with control characters escaped. Names of models and files can contain sequences for the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)


class Output(Console):
    """A console that prints every text as ``printable``."""

    def print(self, *objects: Any, **options: Any) -> None:
        """See ``Console``."""
        super().print(*(printable(one) if isinstance(one, str) else one for one in objects), **options)


class Printer:
    """Prints one answer as it arrives. ``quiet``: only keeps it."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.answer = Answer()
        self.over = False
        """Whether the stream has ended, completely or not."""
        self._console = console
        self._quiet = quiet
        self._started = time.perf_counter()
        self._out = sys.stdout
        self._thinks = False

    @property
    def elapsed(self) -> float:
        """Seconds since the request."""
        return time.perf_counter() - self._started

    async def stream(self, backend: Backend, request: GenerationRequest) -> None:
        """Send the request and print the answer. A cancelled call stops the answer and prints its end.

        Raises GraniteDemoError.
        """
        stop = Stop()
        reading = asyncio.create_task(self._read(backend.stream(replace(request, stop=stop))))
        try:
            await asyncio.shield(reading)
        except asyncio.CancelledError:
            stop.set()
            await reading
            raise
        if self.answer.finish is None:
            raise EngineError("The answer ended before it was finished.")

    async def _read(self, stream: AsyncGenerator[StreamEvent]) -> None:
        try:
            async with aclosing(stream) as events:
                async for event in events:
                    self._take(event)
        finally:
            self.over = True

    def _take(self, event: StreamEvent) -> None:
        self.answer.add([event], self.elapsed)
        if not self._quiet:
            self._print(event)

    def _print(self, event: StreamEvent) -> None:
        if isinstance(event, ReasoningDelta):
            self._think(event.text)
        elif isinstance(event, TextDelta | Appendix):
            self._write(event.text)
        elif isinstance(event, ToolCalled):
            self._write(f"\n{event.call.name} {event.call.arguments}")

    def _think(self, text: str) -> None:
        if text:
            self._thinks = True
            text = text.translate(_CONTROLS) if self._console.is_terminal else text
            say(self._console, text, end="")

    def _write(self, text: str) -> None:
        if text:
            self._end_thinking()
            self._out.write(text.translate(_CONTROLS) if self._out.isatty() else text)
            self._out.flush()

    def _end_thinking(self) -> None:
        if self._thinks:
            self._thinks = False
            self._console.print()

    def end(self, newline: bool = False) -> None:
        """End the line on a terminal; with ``newline``, always."""
        if self._quiet:
            return
        self._end_thinking()
        if newline or self._out.isatty():
            self._out.write("\n")
            self._out.flush()


def say(console: Console, text: str, end: str = "\n") -> None:
    """Print ``text`` dimmed, without markup."""
    # soft_wrap: the terminal wraps, so that the pieces of an answer stay one text.
    console.print(text, style="dim", end=end, markup=False, highlight=False, emoji=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print ``value`` to standard output as one line. Numbers that JSON does not have, such as -inf, become null."""
    print(json.dumps(_in_json(value), allow_nan=False))


def _in_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _in_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value


async def can_chat(backend: Backend) -> bool:
    """Whether the ready model has a chat template. A model that cannot be inspected counts as having one."""
    try:
        await backend.inspect(GenerationRequest((Message("user", "Hello"),)))
    except InvalidRequestError:
        return False
    return True


def thinking_note(switches: Switches, thinking: Thinking | None, system: bool) -> str:
    """A note if the level ``thinking`` does not have its usual effect, otherwise an empty text."""
    if thinking is None:
        return ""
    if not switches.thinking:
        return "This model's template has no switch for thinking: --thinking has no effect."
    if thinking not in switches.thinking:
        return f"This model's thinking levels are {', '.join(switches.thinking)}; one of them is used for {thinking}."
    return reasons(switches, system=system, tools=False, documents=False).get("thinking", "")


class _Masked(logging.Formatter):
    """Masks secrets in messages and tracebacks, and escapes characters that would move the cursor of a terminal."""

    def __init__(self, secrets: Iterable[str], quoting: bool = True) -> None:
        """``quoting``: whether a traceback has the texts of its errors, which can quote a visitor."""
        super().__init__("%(message)s", "%X")
        self._quoting = quoting
        known = sorted(filter(None, secrets), key=len, reverse=True)
        self._secret = re.compile("|".join([*map(re.escape, known), HUB_TOKEN]))

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        record.exc_text = None  # what another formatter has made of the traceback
        return printable(self._secret.sub(MASK, super().format(record)))

    def formatException(self, ei: Any) -> str:
        """See ``logging.Formatter``."""
        return super().formatException(ei) if self._quoting else "\n".join(_frames(ei[1]))


def _frames(error: BaseException | None, seen: frozenset[int] = frozenset()) -> Iterator[str]:
    """The traceback of ``error`` and of its causes, with the class of each error and not its text."""
    if error is None or id(error) in seen:
        return
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    yield from _frames(cause, seen | {id(error)})
    yield "".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__


def set_up_logging(level: str, console: Console, secrets: Iterable[str] = (), strangers: bool = False) -> None:
    """Send the log to ``console``, with ``secrets`` masked. ``level`` is for this package; others log warnings.

    ``strangers``: whether they cause the errors. Then only the level debug shows what the errors of a traceback say.
    """
    handler = RichHandler(console=console, show_path=False, rich_tracebacks=False)
    handler.setFormatter(_Masked(secrets, quoting=not strangers or level == "debug"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("granite_demo").setLevel(level.upper())


def progress_bar(console: Console) -> Progress:
    """A bar with a description and a ``detail`` field, which disappears at the end. Not shown without a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class LoadReporter:
    """Shows the states of a model: a bar on a terminal, and a log line for each stage."""

    def __init__(self, console: Console) -> None:
        self._progress = progress_bar(console)
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


def standard_output() -> Output:
    """Standard output without markup; in a pipe, rows and sentences stay whole."""
    output = Output(highlight=False, markup=False, emoji=False)
    if not output.is_terminal:
        output.width = WIDE
    return output


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], left: Sequence[str]) -> None:
    """Print a table to standard output; the columns that ``left`` names are aligned left."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in row))
    standard_output().print(table)
