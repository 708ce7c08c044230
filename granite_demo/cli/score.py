"""The commands ``score`` and ``compare``: the probability of each token of a text, in one or two precisions."""

import asyncio
import sys
from contextlib import aclosing, closing
from dataclasses import asdict, replace
from math import exp
from pathlib import Path
from typing import Any, get_args

import typer
from rich.console import Console

from granite_demo.backend import Backend
from granite_demo.backends.comparison import NEEDS_TORCH
from granite_demo.cli import flags
from granite_demo.cli.complete import read_text
from granite_demo.cli.composition import OpenBackend
from granite_demo.cli.models import refuse_url
from granite_demo.cli.terminal import print_json, print_table, say, standard_output
from granite_demo.errors import ConfigurationError, EngineError, InvalidRequestError
from granite_demo.models.installation import require_torch
from granite_demo.settings import Settings
from granite_demo.types.comparison import ComparedSide, Comparing, Comparison, to_csv
from granite_demo.types.events import ScoreSummary
from granite_demo.types.load_options import Dtype, LoadOptions, Quantization
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.model_status import gigabytes
from granite_demo.types.requests import CompareRequest, ScoreRequest


def add_score_command(cli: typer.Typer, console: Console, opened: OpenBackend) -> None:
    """``opened`` gives the backend of settings, its model ready."""

    @cli.command()
    @flags.with_tables
    def score(
        settings: Settings,
        text: flags.TextArgument = None,
        alternatives: flags.Alternatives = 0,
        special_tokens: flags.SpecialTokens = False,
        as_json: flags.AsJson = False,
    ) -> None:
        """Print the probability of each token of TEXT, and the perplexity of the text.

        One line break at the end of standard input is removed.
        """
        try:
            request = ScoreRequest(read_text(text, sys.stdin), None, alternatives, special_tokens)
        except InvalidRequestError as error:
            raise ConfigurationError(error.user_text) from None
        with closing(opened(settings, console)) as ready:
            tokens, summary = asyncio.run(_scored(ready, request))
        if as_json:
            print_json(to_json(tokens, summary))
        else:
            show(tokens, summary, alternatives > 0)


async def _scored(backend: Backend, request: ScoreRequest) -> tuple[list[ScoredToken], ScoreSummary]:
    tokens: list[ScoredToken] = []
    async with aclosing(backend.score(request)) as events:
        async for event in events:
            if isinstance(event, ScoredToken):
                tokens.append(event)
            elif isinstance(event, ScoreSummary):
                return tokens, event
    raise EngineError("The scoring ended before it was finished.")


def to_json(tokens: list[ScoredToken], summary: ScoreSummary) -> dict[str, Any]:
    """The whole result as JSON. Log probabilities and entropies are in nats."""
    return {
        "tokens": [
            {
                "id": token.id,
                "text": token.text,
                "logprob": token.logprob,
                "entropy": token.entropy,
                "alternatives": [asdict(other) for other in token.alternatives],
            }
            for token in tokens
        ],
        "total": {**asdict(summary), "perplexity": summary.perplexity},
    }


def show(tokens: list[ScoredToken], summary: ScoreSummary, alternatives: bool) -> None:
    """Print a table with a row for each token, and the total."""
    columns = ("token", "logprob", "p", "entropy", *(["alternatives"] if alternatives else []))
    rows = [_row(token)[: len(columns)] for token in tokens]
    print_table(columns, rows, left=("token", "alternatives"))
    line = f"{summary.tokens:,} tokens, log probability {summary.logprob:.3f}"
    if summary.perplexity is not None:
        line += f", perplexity {summary.perplexity:.3f}"
    standard_output().print(line)


def _row(token: ScoredToken) -> tuple[str, ...]:
    if token.logprob is None:
        return (repr(token.text), "", "", "", "")
    entropy = "" if token.entropy is None else f"{token.entropy:.3f}"
    others = ", ".join(f"{other.text!r} {exp(other.logprob):.2f}" for other in token.alternatives)
    return repr(token.text), f"{token.logprob:.3f}", f"{exp(token.logprob):.3f}", entropy, others


PRECISION_FLAGS = tuple(name for name in (*get_args(Dtype), *get_args(Quantization)) if name not in ("auto", "none"))
TABLE_ROWS = 10
"""The number of tokens in the table: those with the largest divergence."""


def add_compare_command(cli: typer.Typer, console: Console, opened: OpenBackend) -> None:
    """``opened`` gives the backend of settings, its model ready."""

    @cli.command()
    @flags.with_tables
    def compare(
        settings: Settings,
        text: flags.TextArgument = None,
        reference: flags.Reference = "bfloat16",
        other: flags.Other = "nf4",
        special_tokens: flags.SpecialTokens = False,
        csv_file: flags.CsvFile = None,
        as_json: flags.AsJson = False,
        url: flags.NoUrl = None,
    ) -> None:
        """Evaluate TEXT in two precisions of the model, and print where they differ.

        One line break at the end of standard input is removed.
        """
        settings = in_precision(settings, reference, "--reference")
        refuse_url(url or settings.backend or None, "A server has its model in one precision; compare needs two.")
        in_precision(settings, other, "--other")
        if reference == other:
            raise ConfigurationError("Both precisions are the same. Choose another one with --other.")
        require_torch(NEEDS_TORCH)
        given = read_text(text, sys.stdin)
        if not given:
            raise ConfigurationError("There is no text.")
        with closing(opened(settings, console)) as there:
            request = to_request(given, settings.load_options(), other, there.status().name, special_tokens)
            result = asyncio.run(_compared(there, request, console))
        if csv_file:
            write_csv(result, csv_file)
        if as_json:
            print_json(comparison_json(result))
        else:
            show_comparison(result)


def in_precision(settings: Settings, precision: str, flag: str) -> Settings:
    """``settings`` with ``precision``, the value of ``flag``. Raises ConfigurationError for an unknown one."""
    if precision not in PRECISION_FLAGS:
        raise ConfigurationError(f"{flag} must be one of {', '.join(PRECISION_FLAGS)}, not {precision!r}.")
    if precision in get_args(Dtype):
        return replace(settings, dtype=precision, quantization="none")  # type: ignore[arg-type]
    return replace(settings, dtype="auto", quantization=precision)  # type: ignore[arg-type]


def to_request(
    text: str, reference: LoadOptions, other: str, name: str, special_tokens: bool = False
) -> CompareRequest:
    """The request. ``name`` is the model of the reference if it was chosen automatically."""
    if reference.model == "auto":
        reference = replace(reference, model=name)
    changed = in_precision(Settings(), other, "--other").load_options()
    return CompareRequest(
        text, reference, replace(reference, dtype=changed.dtype, quantization=changed.quantization), special_tokens
    )


async def _compared(backend: Backend, request: CompareRequest, console: Console) -> Comparison:
    shown = ""
    async with aclosing(backend.compare(request)) as events:
        async for event in events:
            if isinstance(event, Comparison):
                return event
            if isinstance(event, Comparing) and event.text != shown:
                shown = event.text
                say(console, shown)
    raise EngineError("The comparison ended before it was finished.")


def write_csv(result: Comparison, file: Path) -> None:
    """Write a line for each token. Raises InvalidRequestError if ``file`` cannot be written."""
    try:
        file.write_text(to_csv(result), encoding="utf-8", newline="")
    except OSError as error:
        raise InvalidRequestError(f"{file} cannot be written: {error.strerror}.") from None


def comparison_json(result: Comparison) -> dict[str, Any]:
    """The whole result as JSON."""
    return {
        "mean_divergence": result.mean_divergence,
        "agreement": result.agreement,
        "reference": asdict(result.reference),
        "other": asdict(result.other),
        "tokens": [asdict(token) for token in result.tokens],
    }


def show_comparison(result: Comparison) -> None:
    """Print both sides, the mean, and the tokens with the largest divergence."""
    columns = ("precision", "weights", "read", "written", "perplexity")
    print_table(columns, [_side(result.reference), _side(result.other)], left=("precision",))
    standard_output().print(
        f"KL divergence: {result.mean_divergence:.2g} nats per token on average. "
        f"The most likely token is the same at {result.agreement:.1%} of {len(result.tokens):,} positions."
    )
    worst = sorted(result.tokens, key=lambda token: -token.divergence)[:TABLE_ROWS]
    rows = [
        (
            repr(token.text),
            f"{token.divergence:.2g}",
            f"{token.reference:.3f}",
            f"{token.other:.3f}",
            repr(token.reference_top),
            repr(token.other_top),
        )
        for token in worst
    ]
    one, two = result.reference.label, result.other.label
    heads = ("token", "divergence", f"logprob in {one}", f"in {two}", f"most likely in {one}", f"most likely in {two}")
    print_table(heads, rows, left=("token", *heads[4:]))


def _side(side: ComparedSide) -> tuple[str, ...]:
    return (
        side.label,
        "" if side.weights_bytes is None else gigabytes(side.weights_bytes, 2),
        f"{side.prefill_rate:,.0f} tokens/s",
        "" if side.decode_rate is None else f"{side.decode_rate:,.1f} tokens/s",
        "" if side.perplexity is None else f"{side.perplexity:.3f}",
    )
