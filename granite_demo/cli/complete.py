"""The command ``complete``: prints the answer to a text, or its continuation."""

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


def add_complete_command(cli: typer.Typer, console: Console, opened: OpenBackend) -> None:
    """``opened`` gives the backend of settings, its model ready."""

    @cli.command()
    @flags.with_tables
    def complete(
        sampling: SamplingParams,
        settings: Settings,
        text: flags.TextArgument = None,
        chat: flags.Chat = None,
        special_tokens: flags.SpecialTokens = False,
        system: flags.System = "",
        thinking: flags.ThinkingOption = None,
        suffix: flags.Suffix = None,
        schema: flags.Schema = None,
        regex: flags.Regex = None,
        choice: flags.ChoiceOption = None,
        logprobs: flags.Logprobs = None,
        as_json: flags.JsonObject = False,
    ) -> None:
        """Print the model's answer to TEXT, or with --raw its continuation. Thinking goes to standard error.

        One line break at the end of standard input is removed. The exit code is 130 after Ctrl-C.
        """
        if logprobs is not None and not as_json:
            raise ConfigurationError("--logprobs needs JSON output. Add --json.")
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
    """``text``, or the text from ``stdin``. Raises GraniteDemoError."""
    if text not in (None, flags.STANDARD_INPUT):
        return str(text)
    if text is None and stdin.isatty():
        raise ConfigurationError("There is no text. Give it as TEXT or in a pipe, or use - to type it.")
    try:
        found = stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise InvalidRequestError("Standard input is not UTF-8 text.") from None
    # echo adds it. The shell's $(…) would remove all line breaks at the end.
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
    """The requests for ``text``, the preferred one first. Raises GraniteDemoError.

    ``chat`` None: a chat, or the text as it is for a model without a chat template.
    """
    system = system.strip()
    for_chat = [name for name, value in (("--system", system), ("--thinking", controls.thinking)) if value]
    if for_chat and chat is False:
        raise ConfigurationError(f"{for_chat[0]} needs the chat template. Remove it, or remove --raw.")
    if special_tokens and chat is not False:
        raise ConfigurationError("--special-tokens needs text without the chat template. Add --raw.")
    if suffix is not None and chat is not False:
        raise ConfigurationError("--suffix needs text without the chat template. Add --raw.")
    raw = []
    if not (chat or for_chat):
        raw = [GenerationRequest(prompt=text, suffix=suffix, special_tokens=special_tokens, sampling=sampling)]
    if chat is False:
        return raw
    if not text.strip():
        raise InvalidRequestError("The message is empty. Write something to answer.")
    messages = (*([Message("system", system)] if system else []), Message("user", text))
    return [GenerationRequest(messages, sampling=sampling, controls=controls), *raw]


def run(backend: Backend, requests: Sequence[GenerationRequest], console: Console, as_json: bool) -> None:
    """Send the first of ``requests`` that the model can answer, and print the answer. Raises GraniteDemoError."""
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
        say(console, "This model has no chat template: it continues the text.")
    system = request.messages[:1] and request.messages[0].role == "system"
    if note := thinking_note(backend.status().switches, request.controls.thinking, bool(system)):
        say(console, note)
    await printer.stream(backend, request)
    return request


def to_json(request: GenerationRequest, answer: Answer, finish: Finish) -> dict[str, Any]:
    """The whole answer as JSON."""
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
