"""Makes a saved answer again and tells where it first differs. Knows models only as a ``Backend``."""

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing, closing
from dataclasses import asdict, dataclass
from typing import Literal

import typer
from rich.console import Console

from granite_demo.backend import Backend, ManagedBackend
from granite_demo.chat.bundle import STOPPED, Answered, Bundle, Traced, to_request, versions
from granite_demo.chat.conversation import Call
from granite_demo.cli import flags
from granite_demo.cli.composition import opened_backend
from granite_demo.cli.terminal import print_json, set_up_logging, standard_output
from granite_demo.errors import EngineError, UnknownModelError
from granite_demo.models import registry
from granite_demo.settings import Settings
from granite_demo.types.events import Finish, Provenance, ReasoningDelta, TextDelta, ToolCalled

AROUND = 40
"""Characters that are shown on each side of where two texts part."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the new answer compares with the saved one."""

    compared: Literal["tokens", "characters"]
    """Characters, where one side does not know its tokens."""
    count: int
    """How many of them the saved answer has."""
    first: int | None
    """The first that differs, from 0; None: all are equal."""
    recorded: str = ""
    """The saved text around where the texts part."""
    now: str = ""
    differences: tuple[str, ...] = ()
    """What else is not as it was, in plain words."""

    @property
    def equal(self) -> bool:
        """Whether the answer came out the same."""
        return self.first is None


def settings_for(bundle: Bundle, settings: Settings) -> Settings:
    """``settings`` with the model that made the answer. Raises UnknownModelError where it is not known here."""
    made_by = bundle.made.provenance
    if not made_by.model:
        return settings
    try:
        registry.resolve(made_by.model)
    except UnknownModelError as error:
        raise UnknownModelError(
            f"The answer was made by {made_by.model!r:.200}, which is not in the registry. If it was a folder, name "
            "the folder with --model."
        ) from error
    return dataclasses.replace(settings, model=made_by.model, revision=settings.revision or made_by.revision)


async def replay(backend: Backend, bundle: Bundle) -> Outcome:
    """Ask again and compare: an answer that was stopped as far as it went. Raises GraniteDemoError."""
    answer, finish = await _answer_again(backend, bundle)
    saved, recorded, now = bundle.answer, bundle.made.token_ids, finish.token_ids
    stopped = bundle.made.finish_reason == STOPPED
    if stopped:
        saved, answer, now = _readable(saved), _as_far(answer, _readable(saved)), now[: len(recorded)]
    before, after = _whole(saved), _whole(answer)
    differences = tuple(_differences(bundle, finish))
    part = _first_difference(before, after)
    if recorded and now:
        first = _first_difference(recorded, now)
        if first is None and stopped:
            part = None  # where it stopped, what had come of a marker or a call is text
        if first is None and part is not None:
            differences = (*differences, "The tokens are the same, but are taken apart into text in another way.")
        outcome = Outcome("tokens", len(recorded), first, differences=differences)
    else:
        outcome = Outcome("characters", len(before), part, differences=differences)
    if part is None:
        return outcome
    shown = (_around(before, part), _around(after, part))
    return Outcome(outcome.compared, outcome.count, outcome.first, *shown, differences)


async def _answer_again(backend: Backend, bundle: Bundle) -> tuple[Answered, Finish]:
    text, thinking, calls, finish = "", "", list[Call](), None
    async with aclosing(backend.stream(to_request(bundle))) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                text += event.text
            elif isinstance(event, ReasoningDelta):
                thinking += event.text
            elif isinstance(event, ToolCalled):
                call = event.call
                calls.append(Call(name=call.name, arguments=call.arguments, error=call.error))
            elif isinstance(event, Finish):
                finish = event
    if finish is None:
        raise EngineError("The answer ended before it was whole, so it cannot be compared.")
    return Answered(text=text, thinking=thinking, calls=tuple(calls)), finish


def _readable(stopped: Answered) -> Answered:
    """``stopped`` without a call that was cut off."""
    return stopped.model_copy(update={"calls": tuple(call for call in stopped.calls if not call.error)})


def _as_far(answer: Answered, stopped: Answered) -> Answered:
    """The beginning of ``answer`` that is as long as the ``stopped`` one."""
    text, calls = answer.text[: len(stopped.text)], answer.calls[: len(stopped.calls)]
    # Where text or calls had begun, the thinking had ended.
    begun = bool(stopped.text or stopped.calls)
    thinking = answer.thinking if begun else answer.thinking[: len(stopped.thinking)]
    return Answered(text=text, thinking=thinking, calls=calls)


def _whole(answer: Answered) -> str:
    calls = [f"{call.name} {call.arguments}" for call in answer.calls]
    return "\n".join(part for part in (answer.thinking, answer.text, *calls) if part)


def _first_difference(one: Sequence[object], other: Sequence[object]) -> int | None:
    pairs = zip(one, other, strict=False)
    shorter = min(len(one), len(other))
    first = next((index for index, (left, right) in enumerate(pairs) if left != right), shorter)
    return None if first == len(one) == len(other) else first


def _around(text: str, index: int) -> str:
    before, after = text[max(0, index - AROUND) : index], text[index : index + AROUND]
    start, end = "…" if index > AROUND else "", "…" if index + AROUND < len(text) else ""
    return f"{start}{before}{after}{end}"


def _differences(bundle: Bundle, finish: Finish) -> Iterable[str]:
    if bundle.note:
        yield bundle.note
    if bundle.made.finish_reason == STOPPED:
        yield "The saved answer was stopped, or ended by an error: what comes after its end is not compared."
    if bundle.request.sampling.temperature > 0 and bundle.request.sampling.seed is None:
        yield "The seed of the saved answer is not known, so the new one was drawn with another."
    before = bundle.made.provenance
    after = _traced(finish.provenance or Provenance())
    if _both_differ(before.prompt_sha256, after.prompt_sha256):
        yield (
            "The prompt is another one, by its hash: the template, the tokenizer, or what the conversation carries "
            "(system prompt, tools, documents) has changed since."
        )
    if _both_differ(before.template_sha256, after.template_sha256):
        yield "The chat template is another one, by its hash."
    named = [("model", before.model, after.model), ("revision", before.revision, after.revision)]
    named += [(name, value, after.choices.get(name, "")) for name, value in before.choices.items()]
    now = versions()
    named += [(name, value, now.get(name, "")) for name, value in bundle.made.versions.items()]
    for name, old, new in named:
        if _both_differ(old, new):
            yield f"{name[:1].upper() + name[1:]}: {old} then, {new} now."
    if bundle.made.finish_reason not in (STOPPED, finish.reason):
        yield f"The answer ended by {bundle.made.finish_reason} then, by {finish.reason} now."


def _both_differ(old: str, new: str) -> bool:
    # What one side does not know is no difference.
    return bool(old and new and old != new)


def _traced(provenance: Provenance) -> Traced:
    return Traced(
        model=provenance.model,
        revision=provenance.revision,
        template_sha256=provenance.template_sha256,
        prompt_sha256=provenance.prompt_sha256,
        choices=dict(provenance.choices),
    )


def report(outcome: Outcome) -> list[str]:
    """The outcome as lines to print."""
    if outcome.first is None:
        lines = [f"The answer is the same: {outcome.count:,} {outcome.compared}."]
    else:
        unit = outcome.compared.removesuffix("s")
        known = f"the saved answer has {outcome.count:,}"
        lines = [f"The answer differs from {unit} {outcome.first + 1:,} on; {known}."]
    if outcome.recorded or outcome.now:
        lines += [f"Then: {_one_line(outcome.recorded)}", f"Now:  {_one_line(outcome.now)}"]
    return [*lines, *map(_one_line, outcome.differences)]


def show(outcome: Outcome) -> None:
    """Print the outcome to standard output."""
    for line in report(outcome):
        standard_output().print(line, soft_wrap=True)


def _one_line(text: str) -> str:
    # Answers and files may hold escape sequences that a terminal would obey.
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def add_replay_command(cli: typer.Typer, console: Console) -> None:
    """The command that makes an answer again."""

    @cli.command()
    @flags.with_tables
    def replay(
        settings: Settings, file: flags.AnswerFile, as_json: flags.AsJson = False, model: flags.ModelToReplay = None
    ) -> None:
        """Make a saved answer again and tell where it first differs. The exit code is 0 if it does not, else 1."""
        settings = dataclasses.replace(settings, model=model or settings.model)
        raise typer.Exit(0 if run_replay(file, settings, model is not None, console, as_json=as_json) else 1)


def run_replay(
    file: str,
    settings: Settings,
    chosen: bool,
    console: Console,
    opened: Callable[..., ManagedBackend] = opened_backend,
    as_json: bool = False,
) -> bool:
    """Make the answer in ``file`` again, with its own model unless one was ``chosen``; whether it is the same."""
    set_up_logging("warning", console)
    from granite_demo.chat import bundle

    answer = bundle.read_file(file)
    chosen = chosen or bool(settings.backend)
    with closing(opened(settings if chosen else settings_for(answer, settings), console)) as backend:
        outcome = asyncio.run(replay(backend, answer))
    if as_json:
        print_json({"equal": outcome.equal, **asdict(outcome)})
    else:
        show(outcome)
    return outcome.equal
