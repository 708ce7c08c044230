"""The token view: a text as its tokens, tinted by how sure the model was; each opens what else could have come.

The page gets one element a token and the numbers as data; ``token_view.js`` makes the popup when it is wanted.
"""

import html
import json
import re
from collections.abc import Sequence
from math import exp, inf
from typing import Any, Literal

import gradio as gr

from granite_demo.errors import InvalidRequestError
from granite_demo.types.logprobs import ScoredToken
from granite_demo.ui.theme import script

Tint = Literal["probability", "entropy"]

PROBABILITIES = (0.7, 0.4, 0.1, 0.02, 0.002)
"""A token is tinted one step more for each of these that it is below."""
ENTROPIES = (0.1, 0.5, 1.0, 2.0, 3.5)
"""In nats; one step more for each of these that is reached."""
LEGENDS: dict[Tint, tuple[str, tuple[str, ...]]] = {
    "probability": ("Probability", ("70 % and up", "40 %", "10 %", "2 %", "0.2 %", "less")),
    "entropy": ("Entropy in nats", ("below 0.1", "0.1", "0.5", "1", "2", "3.5 and up")),
}
CONTROL = re.compile(r"<\|[^|]+\|>|</?(?:\w+_\w+|think|response|filename|reponame)>")
"""How the vocabularies of Granite spell control tokens."""


def view(elem_id: str, **options: Any) -> gr.HTML:
    """The component to show a token view in. ``picked`` reads its event ``select``."""
    return gr.HTML(js_on_load=script("completion/token_view.js"), elem_id=elem_id, apply_default_css=False, **options)


def picked(event: gr.EventData) -> tuple[int, int]:
    """(position, token id) of the alternative that a visitor picked. Raises InvalidRequestError."""
    values = getattr(event, "position", None), getattr(event, "id", None)
    if not all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values):
        raise InvalidRequestError("That is no token of this text. Reload the page.")
    return values[0], values[1]  # type: ignore[return-value]  # checked above


def tokens_html(tokens: Sequence[ScoredToken], tint: Tint = "probability", *, clickable: bool = True) -> str:
    """``tokens`` with their legend; where ``clickable``, each alternative is a button."""
    shades = [_shade(token, tint) for token in tokens]
    rows = [_row(token) for token in tokens]
    title, steps = LEGENDS[tint]
    return framed([token.text for token in tokens], shades, rows, legend(title, steps), "score", clickable)


def framed(
    texts: Sequence[str], shades: Sequence[int | None], rows: Sequence[Any], head: str, kind: str, clickable: bool
) -> str:
    """A token view: ``shades`` from 0 (no tint) to 5, None where there is nothing to tell; ``rows``: the popups' data.

    ``kind`` is the form of ``rows``, for the script.
    """
    data = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).replace("&", "&amp;").replace("'", "&#39;")
    spans = "".join(_span(text, shade) for text, shade in zip(texts, shades, strict=True))
    return (
        f'<div class="token-view{" picks" * clickable}" data-kind="{kind}" data-rows=\'{data}\'>{head}'
        f'<div class="tokens" tabindex="0" role="group" aria-label="Tokens; arrow keys go from one to the next">{spans}'
        "</div></div>"
    )


def legend(title: str, steps: Sequence[str]) -> str:
    """What each tint stands for."""
    parts = "".join(f'<b class="s{step}">{html.escape(words)}</b>' for step, words in enumerate(steps))
    return f'<div class="legend"><span>{html.escape(title)}</span>{parts}</div>'


def step_of(value: float, bounds: Sequence[float]) -> int:
    """How many of ``bounds`` are reached by ``value``."""
    return sum(value >= bound for bound in bounds)


def _shade(token: ScoredToken, tint: Tint) -> int | None:
    if tint == "entropy":
        return None if token.entropy is None else step_of(token.entropy, ENTROPIES)
    return None if token.logprob is None else sum(exp(token.logprob) < bound for bound in PROBABILITIES)


def _span(text: str, shade: int | None) -> str:
    classes = ["none" if shade is None else f"s{shade}"]
    if CONTROL.fullmatch(text):
        classes.append("control")
    elif text and not text.strip(" "):
        classes.append("blank")
    elif text.startswith(" "):
        classes.append("spaced")
    return f'<b class="{" ".join(classes)}">{visible(text)}</b>'


def visible(text: str) -> str:
    """``text`` as markup in which line breaks, tabs and a token without text can be seen."""
    text = text.replace("\r", "␍").replace("\t", "→\t").replace("\n", "↵\n")
    return html.escape(text) or "∅"


def _row(token: ScoredToken) -> list[Any]:
    others = [[other.id, other.text, _log(other.logprob), _log(other.sampled)] for other in token.alternatives]
    entropy = None if token.entropy is None else round(token.entropy, 3)
    return [token.id, _log(token.logprob), _log(token.sampled), entropy, others]


def _log(value: float | None) -> float | None | str:
    """JSON has no infinity: ``cut`` is what the samplers leave out."""
    return value if value is None else "cut" if value == -inf else round(value, 4)
