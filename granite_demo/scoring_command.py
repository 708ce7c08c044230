"""The command ``score``: a text in, what the model thinks of each of its tokens out."""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import asdict
from math import exp
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from granite_demo import flags
from granite_demo.backends import Backend
from granite_demo.completing import read_text
from granite_demo.errors import ConfigurationError, EngineError, InvalidRequestError
from granite_demo.printing import print_json
from granite_demo.scores import ScoredToken, ScoreRequest, ScoreSummary
from granite_demo.settings import Settings

WIDE = 120
"""Columns of a table in a pipe."""


def add_score_command(
    cli: typer.Typer, console: Console, environ: Mapping[str, str], opened: Callable[[Settings, Console], Backend]
) -> None:
    """``opened`` gives the backend of settings, its model ready."""

    @cli.command()
    def score(
        text: flags.Text = None,
        alternatives: flags.Alternatives = 0,
        special_tokens: flags.SpecialTokens = False,
        as_json: flags.AsJson = False,
        backend: flags.Url = None,
        backend_key: flags.UrlKey = None,
        model: flags.Model = None,
        revision: flags.Revision = None,
        device: flags.Device = None,
        dtype: flags.Dtype = None,
        quantization: flags.Quantization = None,
        attention: flags.Attention = None,
        engine: flags.Engine = None,
        context: flags.Context = None,
        threads: flags.Threads = None,
        cache_dir: flags.CacheDir = None,
    ) -> None:
        """Print how likely the model finds each token of TEXT, and the perplexity of the whole.

        One line break at the end of standard input is left out.
        """
        settings = Settings.resolve(locals(), environ)
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
    raise EngineError("Scoring ended before the text did.")


def to_json(tokens: list[ScoredToken], summary: ScoreSummary) -> dict[str, Any]:
    """All of it, to print as JSON. Log probabilities and entropies are in nats."""
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
    """Print a table, a token a line, and the sum."""
    columns = ("token", "logprob", "p", "entropy", *(["instead"] if alternatives else []))
    rows = [_row(token)[: len(columns)] for token in tokens]
    output = print_table(columns, rows, left=("token", "instead"))
    line = f"{summary.tokens:,} tokens, log probability {summary.logprob:.3f}"
    if summary.perplexity is not None:
        line += f", perplexity {summary.perplexity:.3f}"
    output.print(line, markup=False)


def _row(token: ScoredToken) -> tuple[str, ...]:
    if token.logprob is None:
        return (repr(token.text), "", "", "", "")
    entropy = "" if token.entropy is None else f"{token.entropy:.3f}"
    others = ", ".join(f"{other.text!r} {exp(other.logprob):.2f}" for other in token.alternatives)
    return repr(token.text), f"{token.logprob:.3f}", f"{exp(token.logprob):.3f}", entropy, others


def print_table(columns: Sequence[str], rows: Sequence[tuple[str, ...]], left: Sequence[str]) -> Console:
    """Print to standard output, every character as it is; returns where more can be printed."""
    output = Console(highlight=False)
    output = output if output.is_terminal else Console(highlight=False, width=WIDE)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    output.print(table)
    return output
