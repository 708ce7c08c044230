"""Score: the log probability of each token of a text, and of the whole."""

import html
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import gradio as gr

from granite_demo.backend import Backend
from granite_demo.chat.answer import waiting_words
from granite_demo.errors import GraniteDemoError, InvalidRequestError, log_unexpected
from granite_demo.types.events import Queued, ScoreSummary
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.model_status import ModelStatus
from granite_demo.types.requests import ScoreRequest
from granite_demo.types.stop import Stop
from granite_demo.ui.completion import token_view
from granite_demo.ui.executor import off_loop
from granite_demo.ui.gradio_patches.events import DIRECT, follow, forgiving
from granite_demo.ui.html import note_html
from granite_demo.ui.streaming import Kind, StreamingPanel, Update, Visit, paced, run_or_stop

GROWTH = 1.3
"""The factor of tokens between two updates: all updates together stay in proportion to the text."""
SCORED_EXAMPLE = "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is Lisbon."
TINT_NAMES = list(get_args(token_view.Tint))
WRITTEN = "The text up to there, with that token, is in the Write tab."
SCORING_STOPPED = "Stopped. What follows was not scored."


class Scoring(NamedTuple):
    """The state of a text that is being scored."""

    tokens: Sequence[ScoredToken]
    summary: ScoreSummary | None
    note: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class ScoringTab:
    """The tab's components."""

    reason: gr.HTML
    text: gr.Textbox
    special: gr.Checkbox
    tint: gr.Radio
    run: gr.Button
    stop: gr.Button
    figures: gr.HTML
    view: gr.HTML
    note: gr.HTML
    scored: gr.State
    """The tokens that are shown."""

    @property
    def shown(self) -> list[Any]:
        """The components that ``shown_values`` fills."""
        return [self.reason, self.run, self.special]


def shown_values(status: ModelStatus) -> tuple[Any, ...]:
    """What ``status`` changes in the tab: whether texts can be scored here, and why not."""
    why = status.unable_to("scoring")
    special = gr.Checkbox(interactive=not status.unable_to("special tokens"))
    return gr.HTML(note_html(why) if why else "", visible=bool(why)), gr.Button(interactive=not why), special


async def scorings(backend: Backend, build: Callable[[], ScoreRequest], stop: Stop) -> AsyncGenerator[Scoring]:
    """Yield the tokens as they come, until the text ends or ``stop`` is set. Errors end it with a note."""
    start = time.perf_counter()
    found: list[ScoredToken] = []
    summary: ScoreSummary | None = None
    ahead: int | None = None
    shown = 0

    def state(note: str, kind: Kind = "note") -> Scoring:
        return Scoring(tuple(found), summary, note, kind)

    try:
        async with aclosing(paced(backend.score(await off_loop(build)))) as batches:
            async for batch in batches:
                for event in batch:
                    if isinstance(event, Queued):
                        ahead = event.ahead
                    elif isinstance(event, ScoreSummary):
                        summary = event
                    else:
                        found.append(event)
                if stop.is_set() or summary:
                    break
                if not found or len(found) >= GROWTH * shown:
                    shown = len(found)
                    words = f"{shown:,} tokens" if found else waiting_words(ahead)
                    yield state(f"{words} · {time.perf_counter() - start:.1f} s")
        yield state("" if summary else SCORING_STOPPED)
    except GraniteDemoError as error:
        yield state(error.user_text, "error")
    except Exception as error:
        yield state(log_unexpected(error), "error")


def figures_html(found: Sequence[ScoredToken], summary: ScoreSummary | None) -> str:
    """Log probability, perplexity and bits per byte of a text."""
    if summary is None or not found:
        return ""
    rows = [("Tokens", f"{summary.tokens:,}"), ("Log probability", f"{summary.logprob:,.3f} nats")]
    if summary.perplexity is not None:
        size = len("".join(token.text for token in found[1:]).encode(errors="replace"))
        bits = -summary.logprob / math.log(2) / max(1, size)
        rows += [("Perplexity", f"{summary.perplexity:,.3f}"), ("Bits per byte", f"{bits:.3f}")]
    rows.append(("Time", f"{summary.seconds:.2f} s"))
    cells = "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in rows)
    return f'<dl class="figures">{cells}</dl>' + note_html(
        f"Given the first token, {found[0].text!r}, which nothing predicts. Log probabilities are natural logarithms."
    )


def up_to(found: Sequence[ScoredToken], position: int, token: int) -> str:
    """The text before ``position`` with one of the alternatives that stand there. Raises InvalidRequestError."""
    if position >= len(found):
        raise InvalidRequestError("That is no token of this text. Score it again.")
    texts = [other.text for other in found[position].alternatives if other.id == token]
    if not texts:
        raise InvalidRequestError("That is no alternative of this token. Score the text again.")
    if "\ufffd" in texts[0]:
        raise InvalidRequestError("That token is a part of a character, which cannot be written by itself.")
    return "".join(one.text for one in found[:position]) + texts[0]


def layout() -> ScoringTab:
    """Place the components. Call inside the tab."""
    reason = gr.HTML(elem_id="score-reason", visible=False)
    text = gr.Textbox(
        SCORED_EXAMPLE,
        label="Text",
        elem_id="score-text",
        lines=4,
        max_lines=16,
        info="Read by the model as it stands; nothing is generated.",
    )
    with gr.Row():
        tint = gr.Radio(
            [(name.capitalize(), name) for name in TINT_NAMES], value=TINT_NAMES[0], label="Tint", elem_id="score-tint"
        )
        special = gr.Checkbox(False, label="Control tokens", info="The text may spell them.", elem_id="score-special")
    with gr.Row():
        run = gr.Button("Score", variant="primary", elem_id="score-run")
        stop = gr.Button("Stop", variant="stop", visible=False, elem_id="score-stop")
    figures = gr.HTML(elem_id="score-figures")
    view = token_view.view("score-view")
    note = gr.HTML(elem_id="score-note")
    return ScoringTab(reason, text, special, tint, run, stop, figures, view, note, gr.State(()))


def wire(tab: ScoringTab, backend: Backend, demo: gr.Blocks, ready: list[Any], prompt: gr.Textbox | None = None) -> Any:
    """Connect the events. ``ready``: those after which another model may answer.

    An alternative that is clicked goes into ``prompt`` with the text before it; the event after which it is there is
    returned, None without a ``prompt``.
    """
    screen = [tab.figures, tab.view, tab.scored]
    panel = StreamingPanel(backend, [tab.run, tab.stop], run_or_stop, tab.note, screen)

    def view(found: Sequence[ScoredToken], tint: Any) -> str:
        return token_view.tokens_html(
            found, tint if tint in TINT_NAMES else TINT_NAMES[0], clickable=prompt is not None
        )

    async def score(visit: Visit, text: Any, special: Any, tint: Any) -> AsyncGenerator[Update]:
        def build() -> ScoreRequest:
            if why := visit.backend.status().unable_to("scoring"):
                raise InvalidRequestError(why)
            return ScoreRequest(str(text or ""), special_tokens=special is True)

        empty = {tab.figures: "", tab.view: "", tab.scored: ()}
        yield {**visit.busy, **empty, tab.note: note_html(waiting_words(None))}
        found: Sequence[ScoredToken] = ()
        async with aclosing(scorings(visit.backend, build, visit.stop)) as updates:
            async for found, summary, note, kind in updates:
                yield {
                    tab.figures: figures_html(found, summary),
                    tab.view: view(found, tint) if found else "",
                    tab.note: note_html(note, kind) if note else "",
                }
        yield {tab.scored: found}

    def tinted(found: Sequence[ScoredToken], tint: Any) -> Any:
        return view(found, tint) if found else gr.skip()

    panel.start("score", [tab.run.click], score, [tab.text, tab.special, tab.tint])
    panel.stop(tab.stop.click)
    panel.stop_on_leave(demo)
    tab.tint.input(tinted, [tab.scored, tab.tint], [tab.view], **DIRECT)
    follow(ready, lambda: shown_values(backend.status()), None, tab.shown)
    if prompt is None:
        return None

    def pick(event: gr.EventData, found: Sequence[ScoredToken]) -> tuple[Any, ...]:
        return (up_to(found, *token_view.picked(event)),)

    picked = tab.view.select(forgiving(pick, 1), [tab.scored], [prompt, tab.note], **DIRECT)
    return picked.then(lambda note: note or note_html(WRITTEN), [tab.note], [tab.note], **DIRECT)
