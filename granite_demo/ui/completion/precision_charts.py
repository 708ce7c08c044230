"""How two precisions differ on a text, as the page shows it: heat map, tables and figure. Pure functions."""

import html
from collections.abc import Sequence
from math import inf
from typing import Any

from granite_demo.types.comparison import ComparedSide, ComparedToken, Comparison
from granite_demo.types.model_status import gigabytes
from granite_demo.ui.completion import token_view
from granite_demo.ui.html import note_html

DIVERGENCES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""In nats; a token is tinted one step more for each of these that is reached."""
STEPS = ("below 0.0001", "0.0001", "0.001", "0.01", "0.1", "1 and up")
WORST = 10
LEAST = 1e-8
"""What is less is drawn here: a log scale has no zero, and the rounding of float32 goes about so far."""
BEFORE_WORST = 3
"""Tokens of the text shown before one of the worst."""


def heat_html(comparison: Comparison, text: str) -> str:
    """The text, each token tinted by how much the two distributions in its place differ."""
    found = comparison.tokens
    first = text[: max(0, len(text) - len("".join(token.text for token in found)))]
    names = [comparison.reference.label, comparison.other.label]
    rows = [None, *(_row(token, names) for token in found)]
    shades = [None, *(token_view.step_of(token.divergence, DIVERGENCES) for token in found)]
    head = token_view.legend("KL divergence in nats", STEPS)
    return token_view.framed([first, *(token.text for token in found)], shades, rows, head, "compare", clickable=False)


def _row(token: ComparedToken, names: Sequence[str]) -> list[Any]:
    logs = ["cut" if value == -inf else round(value, 4) for value in (token.reference, token.other)]
    return [
        token.id,
        number(token.divergence),
        token.agree,
        *logs,
        token.reference_top,
        token.other_top,
        names,
    ]


def number(value: float | None, digits: int = 3) -> str:
    """``value`` in a few digits; a dash where there is none."""
    return "—" if value is None else "∞" if value == inf else f"{value:.{digits}g}"


def summary_html(comparison: Comparison) -> str:
    """Divergence and agreement of the whole, and what each side costs."""
    count = len(comparison.tokens)
    figures = (
        ("Mean KL divergence", f"{number(comparison.mean_divergence)} nats a token"),
        ("Same likeliest token", f"{comparison.agreement:.1%}"),
        ("Tokens compared", f"{count:,}"),
    )
    cells = "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in figures)
    sides = (comparison.reference, comparison.other)
    rows = [("Precision", *(side.label for side in sides)), *(_cost(name, sides) for name in _COSTS)]
    body = "".join(
        f"<tr><th scope='row'>{html.escape(name)}</th>{''.join(f'<td>{html.escape(value)}</td>' for value in values)}"
        "</tr>"
        for name, *values in rows
    )
    head = "<tr><td></td><th scope='col'>Reference</th><th scope='col'>Other</th></tr>"
    table = f'<table class="sides"><thead>{head}</thead><tbody>{body}</tbody></table>'
    return f'<dl class="figures">{cells}</dl>{table}'


_COSTS: dict[str, Any] = {
    "Weights": lambda side: "—" if side.weights_bytes is None else gigabytes(side.weights_bytes),
    "Perplexity": lambda side: number(side.perplexity, 5),
    "Reading": lambda side: f"{side.prefill_rate:,.0f} tokens/s",
    "Writing": lambda side: "—" if side.decode_rate is None else f"{side.decode_rate:,.1f} tokens/s",
}


def _cost(name: str, sides: Sequence[ComparedSide]) -> tuple[str, ...]:
    return (name, *(_COSTS[name](side) for side in sides))


def worst_html(comparison: Comparison) -> str:
    """The places where the two differ most."""
    found = comparison.tokens
    order = sorted(range(len(found)), key=lambda index: -found[index].divergence)[:WORST]
    if not order:
        return note_html("There is nothing to compare: nothing predicts a text's first token.")
    names = (comparison.reference.label, comparison.other.label)
    titles = ("Place", "Token", "KL, nats", *(f"Likeliest in {name}" for name in names))
    head = "".join(f"<th scope='col'>{html.escape(title)}</th>" for title in titles)
    rows = "".join(f"<tr>{_worst(found, index)}</tr>" for index in order)
    return f'<table class="worst"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _worst(found: Sequence[ComparedToken], index: int) -> str:
    token = found[index]
    before = "".join(one.text for one in found[max(0, index - BEFORE_WORST) : index])
    tops = "".join(f"<td><code>{_short(top)}</code></td>" for top in (token.reference_top, token.other_top))
    place = f"<td>{index + 2:,}</td><td>{_short(before)}<mark>{_short(token.text)}</mark></td>"
    return f"{place}<td>{number(token.divergence)}</td>{tops}"


def _short(text: str) -> str:
    shown = text.replace("\n", "↵").replace("\t", "→")
    return html.escape(f"{shown[:40]}…" if len(shown) > 40 else shown)


def figure(comparison: Comparison) -> Any:
    """The divergence at each place as a plotly figure with a log scale; a ring where the likeliest tokens differ."""
    import plotly.graph_objects as go

    found = comparison.tokens
    places = list(range(2, len(found) + 2))
    values = [min(max(token.divergence, LEAST), 1e3) for token in found]
    words = [_short(token.text) for token in found]
    apart = [index for index, token in enumerate(found) if not token.agree]
    hover = "%{text}<br>%{y:.3g} nats<extra></extra>"
    line = {"color": "#4c78c8", "width": 1.5}
    traces = [
        go.Scatter(x=places, y=values, text=words, mode="lines", name="KL divergence", line=line, hovertemplate=hover),
        go.Scatter(
            x=[places[index] for index in apart],
            y=[values[index] for index in apart],
            text=[words[index] for index in apart],
            mode="markers",
            name="another likeliest token",
            marker={"color": "#c47900", "symbol": "circle-open", "size": 9, "line": {"width": 2}},
            hovertemplate=hover,
        ),
    ]
    lines = "rgba(128,128,128,0.3)"
    drawn = go.Figure(traces)
    drawn.update_xaxes(title="Token of the text", gridcolor=lines, zeroline=False)
    drawn.update_yaxes(title="KL divergence, nats", type="log", exponentformat="power", gridcolor=lines)
    drawn.update_layout(
        height=320,
        margin={"l": 60, "r": 10, "t": 30, "b": 45},
        legend={"orientation": "h", "y": 1.15},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return drawn
