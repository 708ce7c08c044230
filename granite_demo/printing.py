"""An answer in the terminal: its text to standard output as it comes, thinking dimmed to standard error.

Knows models only as a ``Backend``. Whatever else is said goes to standard error, so that pipes get text alone.
"""

import json
import sys
import time
from contextlib import aclosing
from dataclasses import replace
from math import isfinite
from typing import Any

from rich.console import Console

from granite_demo.backends import Backend
from granite_demo.errors import EngineError, InvalidRequestError
from granite_demo.messages import Message, Switches, Thinking
from granite_demo.switches import reasons
from granite_demo.types import Appendix, GenerationRequest, ReasoningDelta, StreamEvent, TextDelta, ToolCalled
from granite_demo.ui.answer import Answer

# An answer may hold escape sequences, which a terminal would obey.
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Printer:
    """Prints one answer while it grows; unless ``quiet``, when it only keeps it."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.answer = Answer()
        self.over = False
        """Whether the stream has been closed, be it whole or not."""
        self._console = console
        self._quiet = quiet
        self._started = time.perf_counter()
        self._out = sys.stdout
        self._thinks = False

    @property
    def elapsed(self) -> float:
        """Seconds since the answer was asked for."""
        return time.perf_counter() - self._started

    async def stream(self, backend: Backend, request: GenerationRequest) -> None:
        """Ask, and print what comes, to the end of an answer that is stopped, too. Raises GraniteDemoError."""
        rest: list[StreamEvent] = []
        try:
            async with aclosing(backend.stream(replace(request, rest=rest))) as events:
                async for event in events:
                    self._take(event)
        finally:
            self.over = True
            for event in rest:
                self._take(event)
        if self.answer.finish is None:
            raise EngineError("The answer ended before it was whole.")

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
        """End the line: on a terminal, or with ``newline`` in any case."""
        if self._quiet:
            return
        self._end_thinking()
        if newline or self._out.isatty():
            self._out.write("\n")
            self._out.flush()


def say(console: Console, text: str, end: str = "\n") -> None:
    """Show ``text`` dimmed, every character as it is."""
    # soft_wrap: the terminal wraps, and what comes in pieces stays one text.
    console.print(text, style="dim", end=end, markup=False, highlight=False, emoji=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print ``value`` to standard output as one line; numbers that JSON does not have, such as -inf, as null."""
    print(json.dumps(_in_json(value), allow_nan=False))


def _in_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _in_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value


async def can_chat(backend: Backend) -> bool:
    """Whether the model that is ready has a chat template; one that cannot be looked into is taken to have one."""
    try:
        await backend.inspect(GenerationRequest((Message("user", "Hello"),)))
    except InvalidRequestError:
        return False
    return True


def thinking_note(switches: Switches, thinking: Thinking | None, system: bool) -> str:
    """What to tell somebody whose level of ``thinking`` will not do what it says; empty where it will."""
    if thinking is None:
        return ""
    if not switches.thinking:
        return "This model's template has no switch for thinking: the level changes nothing."
    if thinking not in switches.thinking:
        return (
            f"This model's levels of thinking are {', '.join(switches.thinking)}; {thinking} is taken as one of them."
        )
    return reasons(switches, system=system, tools=False, documents=False).get("thinking", "")
