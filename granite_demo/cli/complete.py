"""The command ``complete``: one text in, the answer to it or its continuation out."""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any, TextIO

import typer
from rich.console import Console

from granite_demo.backend import Backend
from granite_demo.chat.answer import Answer
from granite_demo.cli import flags
from granite_demo.cli.composition import OpenBackend
from granite_demo.cli.terminal import Printer, can_chat, print_json, say, thinking_note
from granite_demo.errors import ConfigurationError, InvalidRequestError
from granite_demo.settings import Settings
from granite_demo.types.events import Finish
from granite_demo.types.messages import Controls, Message
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams

STANDARD_INPUT = "-"


def add_complete_command(cli: typer.Typer, console: Console, opened: OpenBackend) -> None:
    """``opened`` gives the backend of settings, its model ready."""

    @cli.command()
    @flags.with_tables
    def complete(
        sampling: SamplingParams,
        settings: Settings,
        text: flags.Text = None,
        chat: flags.Chat = None,
        special_tokens: flags.SpecialTokens = False,
        system: flags.System = "",
        thinking: flags.Thinking = None,
        suffix: flags.Suffix = None,
        schema: flags.Schema = None,
        regex: flags.Regex = None,
        choice: flags.Choice = None,
        logprobs: flags.Logprobs = None,
        as_json: flags.JsonObject = False,
    ) -> None:
        """Print the model's answer to TEXT, or with --raw its continuation. Thinking goes to standard error.

        One line break at the end of standard input is left out. The exit code is 130 after Ctrl-C.
        """
        if logprobs is not None and not as_json:
            raise ConfigurationError("--logprobs needs JSON. Add --json.")
        constraint = flags.constraint(schema, regex, choice)
        read, controls = read_text(text, sys.stdin), flags.controls(thinking)
        try:
            sampling = replace(sampling, constraint=constraint, logprobs=logprobs)
            requests = to_requests(read, chat, system, controls, sampling, special_tokens, suffix)
        except InvalidRequestError as error:
            raise ConfigurationError(error.user_text) from None
        with closing(opened(settings, console)) as ready:
            run(ready, requests, console, as_json)


def read_text(text: str | None, stdin: TextIO) -> str:
    """``text``, or what comes from ``stdin``. Raises GraniteDemoError."""
    if text not in (None, STANDARD_INPUT):
        return str(text)
    if text is None and stdin.isatty():
        raise ConfigurationError("There is no text. Give it as TEXT or through a pipe; with - you can type it.")
    try:
        found = stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise InvalidRequestError("Standard input is not text in UTF-8.") from None
    # The line break is echo's, not the writer's; as the shell's $(…) does it, but once.
    return found.removesuffix("\n").removesuffix("\r")


def to_requests(
    text: str,
    chat: bool | None,
    system: str,
    controls: Controls,
    sampling: SamplingParams,
    special_tokens: bool = False,
    suffix: str | None = None,
) -> Sequence[GenerationRequest]:
    """What ``text`` may be sent as: the first one, if the model can take it. Raises GraniteDemoError.

    ``chat`` None lets the model decide.
    """
    system = system.strip()
    for_chat = [name for name, value in (("--system", system), ("--thinking", controls.thinking)) if value]
    if for_chat and chat is False:
        raise ConfigurationError(f"{for_chat[0]} is for the chat template. Leave it or --raw out.")
    if special_tokens and chat is not False:
        raise ConfigurationError("--special-tokens is for text as it stands. Add --raw.")
    if suffix is not None and chat is not False:
        raise ConfigurationError("--suffix is for text as it stands. Add --raw.")
    raw = []
    if not (chat or for_chat):
        raw = [GenerationRequest(prompt=text, suffix=suffix, special_tokens=special_tokens, sampling=sampling)]
    if chat is False:
        return raw
    messages = (*([Message("system", system)] if system else []), Message("user", text))
    return [GenerationRequest(messages, sampling=sampling, controls=controls), *raw]


def run(backend: Backend, requests: Sequence[GenerationRequest], console: Console, as_json: bool) -> None:
    """Send what the model can take and print what comes. Raises GraniteDemoError."""
    printer = Printer(console, quiet=as_json)
    try:
        request = asyncio.run(_answer(backend, requests, printer, console))
    finally:
        printer.end()
    if as_json and printer.answer.finish:
        print_json(to_json(request, printer.answer, printer.answer.finish))


async def _answer(
    backend: Backend, requests: Sequence[GenerationRequest], printer: Printer, console: Console
) -> GenerationRequest:
    request, *others = requests
    if others and not await can_chat(backend):
        request = others[0]
        say(console, "This model has no chat template: it goes on with the text as it stands.")
    system = request.messages[:1] and request.messages[0].role == "system"
    if note := thinking_note(backend.status().switches, request.controls.thinking, bool(system)):
        say(console, note)
    await printer.stream(backend, request)
    return request


def to_json(request: GenerationRequest, answer: Answer, finish: Finish) -> dict[str, Any]:
    """The whole answer, to print as JSON."""
    from granite_demo.chat.bundle import made

    how = made(request, finish)
    return {
        "text": answer.text,
        "thinking": answer.thinking,
        **({"tokens": [asdict(token) for token in answer.scored]} if answer.scored else {}),
        "tool_calls": [asdict(call) for call in answer.calls],
        "finish_reason": finish.reason,
        "usage": how["usage"],
        "timings": how["timings"],
        "seed": finish.seed,
        "provenance": how["provenance"],
    }
