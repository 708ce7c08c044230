"""The command ``chat``: a conversation in the terminal, or one answer for each line of a pipe."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from granite_demo.backend import Backend
from granite_demo.cli import flags
from granite_demo.cli.composition import OpenBackend
from granite_demo.cli.terminal import can_chat
from granite_demo.errors import InvalidRequestError
from granite_demo.settings import Settings
from granite_demo.types.messages import Controls, scrub
from granite_demo.types.sampling_params import SamplingParams

if TYPE_CHECKING:
    from granite_demo.cli.chat_session import ChatSession


INPUT_PROMPT = "> "


def add_chat_command(cli: typer.Typer, console: Console, opened: OpenBackend) -> None:
    """``opened`` gives the backend of settings, its model ready."""

    @cli.command()
    @flags.with_tables
    def chat(
        sampling: SamplingParams,
        settings: Settings,
        system: flags.System = "",
        thinking: flags.ThinkingOption = None,
    ) -> None:
        """Chat in the terminal. Ctrl-C stops an answer. Ctrl-C twice, or Ctrl-D, leaves. /help lists the commands.

        In a pipe, each line gets an answer, and the exit code is 1 if an answer failed.
        """
        controls = flags.controls(thinking)
        with closing(opened(settings, console)) as ready, asyncio.Runner() as runner:
            raise typer.Exit(run(ready, runner, system, controls, sampling, console))


def run(
    backend: Backend,
    runner: asyncio.Runner,
    system: str,
    controls: Controls,
    sampling: SamplingParams,
    console: Console,
) -> int:
    """Chat until the input ends. Returns the exit code. Raises GraniteDemoError."""
    from granite_demo.chat import conversation
    from granite_demo.cli.chat_session import ChatSession

    if not runner.run(can_chat(backend)):
        raise InvalidRequestError("This model cannot chat: it has no chat template. Use granite-demo complete.")
    typed = sys.stdin.isatty()
    start = conversation.start(system=scrub(system), controls={"thinking": controls.thinking})
    session = ChatSession(backend, runner, start, sampling, console, typed)
    if typed:
        session.greet()
    talk(session, lines_typed(console, ask_for_line(console)) if typed else lines_piped())
    return 1 if session.failed and not typed else 0


def talk(session: "ChatSession", lines: Iterator[str]) -> None:
    """Give each line to the session, until the user leaves or the input ends."""
    for line in lines:
        if line.strip() and not session.take(line):
            return


def lines_piped() -> Iterator[str]:
    """The lines of standard input. Raises InvalidRequestError."""
    try:
        for line in sys.stdin.buffer:
            yield line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise InvalidRequestError("Standard input is not UTF-8 text.") from None


def lines_typed(console: Console, ask: Callable[[], str]) -> Iterator[str]:
    """The typed lines, up to Ctrl-D. The second of two Ctrl-C raises KeyboardInterrupt."""
    warned = False
    while True:
        try:
            line = ask()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            if warned:
                raise
            warned = True
            console.print("\nTo leave, press Ctrl-C again or Ctrl-D, or type /exit.", style="dim", highlight=False)
            continue
        warned = False
        yield scrub(line)


def ask_for_line(console: Console) -> Callable[[], str]:
    """A function that reads a line, with the editing keys of a shell if the system has them."""
    with suppress(ImportError):  # on Windows, whose console has them
        import readline  # noqa: F401

    def ask() -> str:
        if sys.stdout.isatty():
            return input(INPUT_PROMPT)
        # Standard output is redirected, and the prompt is not part of the answers.
        console.print(INPUT_PROMPT, end="")
        return input()

    return ask
