"""The command ``doctor``: one chat here and on another server, the differences, and their likely cause.

Without a server, it shows this machine.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing
from dataclasses import asdict, dataclass, replace

import typer
from rich.console import Console

from granite_demo.backend import Backend
from granite_demo.backends.remote.backend import RemoteBackend
from granite_demo.cli import flags
from granite_demo.cli.composition import OpenBackend
from granite_demo.cli.terminal import print_json, print_table, standard_output
from granite_demo.errors import EngineError, InvalidRequestError
from granite_demo.settings import Settings
from granite_demo.types.events import Finish, ReasoningDelta, StreamEvent, TextDelta, TokenScored
from granite_demo.types.logprobs import TokenAlternative
from granite_demo.types.messages import Message
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams

FIRST_ALTERNATIVES = 5
ROUNDING = 0.15
"""Nats. bfloat16 has 8 bits: for likely tokens, two correct kernels differ by less than this."""
PRECISION = 1.0
"""Nats. For likely tokens, 4 bits change less than this; other weights change more."""


@dataclass(frozen=True, slots=True)
class Side:
    """One answer to the chat. ``prompt_ids`` and ``first`` are empty if the server does not return them."""

    model: str
    prompt_tokens: int
    text: str
    reason: str
    ttft: float
    rate: float | None
    """Tokens per second after the first."""
    first: tuple[TokenAlternative, ...] = ()
    """The most likely first tokens."""
    prompt_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison. ``cause`` is the likely cause of a difference, empty if there is none."""

    what: str
    here: str
    there: str
    cause: str = ""


async def look(backend: Backend, request: GenerationRequest, prompt_ids: tuple[int, ...] = ()) -> Side:
    """The answer to ``request``, with log probabilities if the backend has them. Raises GraniteDemoError."""
    with_logprobs = replace(request, sampling=replace(request.sampling, logprobs=FIRST_ALTERNATIVES))
    try:
        return await _asked(backend, backend.stream(with_logprobs), prompt_ids)
    except InvalidRequestError:
        return await _asked(backend, backend.stream(request), prompt_ids)


async def _asked(backend: Backend, stream: AsyncGenerator[StreamEvent], prompt_ids: tuple[int, ...]) -> Side:
    text = ""
    first: tuple[TokenAlternative, ...] = ()
    async with aclosing(stream) as events:
        async for event in events:
            if isinstance(event, TokenScored):
                first = first or event.token.alternatives
            elif isinstance(event, TextDelta | ReasoningDelta):
                text += event.text
            elif isinstance(event, Finish) and event.reason != "stopped":
                usage, timings = event.usage, event.timings
                rate = timings.decode_rate(usage.completion_tokens)
                status = backend.status()
                name = status.name or status.model
                return Side(name, usage.prompt_tokens, text, event.reason, timings.ttft, rate, first, prompt_ids)
    raise EngineError("The answer ended before it was finished.")


def diagnose(here: Side, there: Side) -> tuple[Finding, ...]:
    """The comparisons, in an order in which one difference causes the next ones."""
    return (
        Finding("model", here.model, there.model),
        _prompts(here, there),
        *_first_tokens(here, there),
        _texts(here, there),
        Finding("finish reason", here.reason, there.reason),
        Finding("time to first token", f"{here.ttft:.2f} s", f"{there.ttft:.2f} s"),
        Finding("tokens per second", _rate(here), _rate(there)),
    )


def likely_cause(findings: tuple[Finding, ...]) -> str:
    """The cause of the first difference, which explains the next ones. Empty if nothing differs."""
    return next((finding.cause for finding in findings if finding.cause), "")


def _prompts(here: Side, there: Side) -> Finding:
    known = here.prompt_tokens and there.prompt_tokens
    counts = _tokens(here), _tokens(there)
    if here.prompt_ids and there.prompt_ids:
        pairs = zip(here.prompt_ids, there.prompt_ids, strict=False)
        place = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
        if place is None and len(here.prompt_ids) != len(there.prompt_ids):
            place = min(len(here.prompt_ids), len(there.prompt_ids))
        if place is None:
            return Finding("prompt", *(f"{count}, the same ids" for count in counts))
        cause = f"The prompts differ from token {place} on: another chat template, default system prompt or tokenizer."
        return Finding("prompt", *counts, cause)
    cause = "The prompts differ in length: another chat template, default system prompt or tokenizer."
    return Finding("prompt", *counts, cause if known and counts[0] != counts[1] else "")


def _tokens(side: Side) -> str:
    return f"{side.prompt_tokens} tokens" if side.prompt_tokens else "unknown"


def _first_tokens(here: Side, there: Side) -> tuple[Finding, ...]:
    if not here.first or not there.first:
        shown = [_shown(side) if side.first else "unknown" for side in (here, there)]
        return (Finding("first token", *shown),)
    ours = {token.text: token.logprob for token in here.first}
    common = [abs(ours[token.text] - token.logprob) for token in there.first if token.text in ours]
    if not common:
        return (Finding("first token", _shown(here), _shown(there), "Other weights: no likely token is the same."),)
    # The least likely of these tokens say little.
    gap = max(common[:3])
    cause = ""
    if gap > PRECISION:
        cause = "Other weights, or another prompt if the rows above differ."
    elif gap > ROUNDING:
        cause = "Another precision or quantization: the first token's log probabilities are close, but not equal."
    return (Finding("first token", _shown(here), f"{_shown(there)}, up to {gap:.3f} apart", cause),)


def _shown(side: Side) -> str:
    best = side.first[0]
    return f"{best.text!r} at {best.logprob:.3f}"


def _texts(here: Side, there: Side) -> Finding:
    if here.text == there.text:
        return Finding("text", f"{len(here.text)} characters", "the same")
    pairs = zip(here.text, there.text, strict=False)
    place = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(here.text), len(there.text)))
    cause = (
        "The texts differ where two tokens are about equally likely: rounding, another precision, or a default of the "
        "server, such as a penalty in its generation config."
    )
    return Finding("text", _around(here.text, place), _around(there.text, place), cause)


def _around(text: str, place: int) -> str:
    return repr(text[max(0, place - 20) : place + 20])


def _rate(side: Side) -> str:
    return "one token" if side.rate is None else f"{side.rate:.1f}"


USUAL_QUESTION = "What is the capital of France? Answer in one sentence."
COMPARED_TOKENS = 48


def add_doctor_command(cli: typer.Typer, console: Console, opened: OpenBackend) -> None:
    """``opened`` gives the backend of settings, its model ready."""

    @cli.command()
    @flags.with_tables
    def doctor(settings: Settings, text: flags.Question = USUAL_QUESTION, as_json: flags.AsJson = False) -> None:
        """Show the installation, its versions, and where models run on this machine.

        With --url, ask a model here and the server at --url the same question, and show the differences and their
        likely cause. Both answers are greedy. The exit code is 0 if nothing differs, otherwise 1.
        """
        if not settings.backend:
            return show_environment(as_json)
        request = GenerationRequest((Message("user", text),), sampling=SamplingParams(max_tokens=COMPARED_TOKENS))
        # --model is the model here; --backend-model is the one of the server.
        with closing(opened(replace(settings, model="auto"), console)) as remote:
            there = asyncio.run(_look_there(remote, request))
        with closing(opened(replace(settings, backend=""), console)) as local:
            here = asyncio.run(_look_here(local, request))
        findings = diagnose(here, there)
        cause = likely_cause(findings)
        if as_json:
            print_json({"findings": [asdict(finding) for finding in findings], "cause": cause})
        else:
            show(findings, cause)
        raise typer.Exit(1 if cause else 0)


def show_environment(as_json: bool) -> None:
    """Print what this machine has."""
    from granite_demo.cli.environment import describe_environment

    facts = describe_environment()
    if as_json:
        print_json(facts)
    else:
        print_table(("", " "), list(facts.items()), left=("", " "))


async def _look_here(backend: Backend, request: GenerationRequest) -> Side:
    view = await backend.inspect(request, parts=True)
    ids = [index for part in view.parts for index, _ in part.tokens] if view else []
    return await look(backend, request, tuple(ids))


async def _look_there(backend: Backend, request: GenerationRequest) -> Side:
    ids = await backend.token_ids(request) if isinstance(backend, RemoteBackend) else ()
    return await look(backend, request, ids)


def show(findings: tuple[Finding, ...], cause: str) -> None:
    """Print the table and the cause."""
    rows = [(finding.what, finding.here, finding.there, "differs" if finding.cause else "") for finding in findings]
    print_table(("", "here", "there", " "), rows, left=("", "here", "there", " "))
    standard_output().print(f"Likely cause: {cause}" if cause else "Only the speed differs.")
