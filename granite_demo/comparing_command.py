"""The command ``compare``: how far a model in one precision is from the same in another, token by token."""

import asyncio
import sys
from collections.abc import Callable, Mapping
from contextlib import aclosing, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import typer
from rich.console import Console

from granite_demo import flags
from granite_demo.backends import Backend
from granite_demo.commands import refuse_url
from granite_demo.comparison_csv import to_csv
from granite_demo.completing import read_text
from granite_demo.errors import ConfigurationError, EngineError, InvalidRequestError
from granite_demo.printing import print_json, say
from granite_demo.scores import ComparedSide, CompareRequest, Comparing, Comparison
from granite_demo.scoring_command import print_table
from granite_demo.settings import Settings
from granite_demo.status import Dtype, LoadOptions, Quantization

PRECISIONS = tuple(name for name in (*get_args(Dtype), *get_args(Quantization)) if name not in ("auto", "none"))
WORST = 10
"""Tokens in the table: those where the two differ most."""


def add_compare_command(
    cli: typer.Typer, console: Console, environ: Mapping[str, str], opened: Callable[[Settings, Console], Backend]
) -> None:
    """``opened`` gives the backend of settings, its model ready."""

    @cli.command()
    def compare(
        text: flags.Text = None,
        reference: flags.Reference = "bfloat16",
        other: flags.Other = "nf4",
        special_tokens: flags.SpecialTokens = False,
        csv_file: flags.CsvFile = None,
        as_json: flags.AsJson = False,
        model: flags.Model = None,
        revision: flags.Revision = None,
        device: flags.Device = None,
        attention: flags.Attention = None,
        engine: flags.Engine = None,
        context: flags.Context = None,
        threads: flags.Threads = None,
        cache_dir: flags.CacheDir = None,
        backend: flags.NoUrl = None,
    ) -> None:
        """Read TEXT in two precisions and print where the second differs from the first.

        One line break at the end of standard input is left out.
        """
        settings = in_precision(Settings.resolve(locals(), environ), reference, "--reference")
        refuse_url(settings.backend or None, "A server loads its model in one precision only; compare loads it in two.")
        in_precision(settings, other, "--other")
        if reference == other:
            raise ConfigurationError("Both precisions are the same. Choose another one with --other.")
        given = read_text(text, sys.stdin)
        if not given:
            raise ConfigurationError("There is no text to compare on.")
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
    """``settings`` with ``precision``, the value of ``flag``. Raises ConfigurationError for one that is not known."""
    if precision not in PRECISIONS:
        raise ConfigurationError(f"{flag} must be one of {', '.join(PRECISIONS)}, not {precision!r}.")
    if precision in get_args(Dtype):
        return replace(settings, dtype=precision, quantization="none")  # type: ignore[arg-type]
    return replace(settings, dtype="auto", quantization=precision)  # type: ignore[arg-type]


def to_request(
    text: str, reference: LoadOptions, other: str, name: str, special_tokens: bool = False
) -> CompareRequest:
    """What to ask for. ``name`` is what the reference is called, where a model was chosen automatically."""
    if reference.model == "auto":
        reference = replace(reference, model=name)
    changed = in_precision(Settings(), other, "--other").load_options()
    return CompareRequest(
        text, reference, replace(reference, dtype=changed.dtype, quantization=changed.quantization), special_tokens
    )


async def _compared(backend: Backend, request: CompareRequest, console: Console) -> Comparison:
    told = ""
    async with aclosing(backend.compare(request)) as events:
        async for event in events:
            if isinstance(event, Comparison):
                return event
            if isinstance(event, Comparing) and event.text != told:
                told = event.text
                say(console, told)
    raise EngineError("The comparison ended before it was whole.")


def write_csv(result: Comparison, file: Path) -> None:
    """A line for each token. Raises InvalidRequestError where ``file`` cannot be written."""
    try:
        file.write_text(to_csv(result), encoding="utf-8", newline="")
    except OSError as error:
        raise InvalidRequestError(f"{file} cannot be written: {error.strerror}.") from None


def comparison_json(result: Comparison) -> dict[str, Any]:
    """All of it, to print as JSON."""
    return {
        "mean_divergence": result.mean_divergence,
        "agreement": result.agreement,
        "reference": asdict(result.reference),
        "other": asdict(result.other),
        "tokens": [asdict(token) for token in result.tokens],
    }


def show_comparison(result: Comparison) -> None:
    """Print both sides, the mean and the worst tokens."""
    columns = ("precision", "weights", "read", "written", "perplexity")
    output = print_table(columns, [_side(result.reference), _side(result.other)], left=("precision",))
    output.print(
        f"KL divergence {result.mean_divergence:.2g} nats a token on average; "
        f"the likeliest token is the same in {result.agreement:.1%} of {len(result.tokens):,} places.",
        markup=False,
    )
    worst = sorted(result.tokens, key=lambda token: -token.divergence)[:WORST]
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
    heads = ("token", "divergence", f"logprob in {one}", f"in {two}", f"likeliest in {one}", f"likeliest in {two}")
    print_table(heads, rows, left=("token", *heads[4:]))


def _side(side: ComparedSide) -> tuple[str, ...]:
    return (
        side.label,
        "" if side.weights_bytes is None else f"{side.weights_bytes / 1e9:.2f} GB",
        f"{side.prefill_rate:,.0f} tokens/s",
        "" if side.decode_rate is None else f"{side.decode_rate:,.1f} tokens/s",
        "" if side.perplexity is None else f"{side.perplexity:.3f}",
    )
