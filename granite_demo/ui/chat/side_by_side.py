"""Side by side: one question answered under two settings, with what each answer cost."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from granite_demo.access import Access
from granite_demo.backend import Backend, ModelControl
from granite_demo.errors import InvalidRequestError
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.messages import Controls, Message
from granite_demo.types.model_status import BESIDE, ModelStatus
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams
from granite_demo.ui import markdown
from granite_demo.ui.html import note_html, panel_head
from granite_demo.ui.models import PRECISION_OPTIONS, labelled, load_options
from granite_demo.ui.settings import to_seed
from granite_demo.ui.streaming import (
    Latest,
    Snapshot,
    StreamingPanel,
    Update,
    Visit,
    run_or_stop,
    side_by_side,
    snapshots,
)

SIDE_NAMES = ("A", "B")
AS_IT_IS = ("Default", "")
THE_LOADED = ("the loaded model", "")
NO_THOUGHTS = "No thinking"
SAME = 0.05
"""Numbers that differ by less than this share are shown without a ratio."""


@dataclass(frozen=True, slots=True)
class SideColumn:
    """One side: its settings, in the order of ``to_request``'s values, and its answer."""

    settings: list[Any]
    thoughts: gr.Accordion
    thinking: gr.Markdown
    answer: gr.Markdown
    costs: gr.HTML

    @property
    def screen(self) -> list[Any]:
        """The components that show the answer."""
        return [self.thoughts, self.thinking, self.answer, self.costs]


@dataclass(frozen=True, slots=True)
class SideBySideTab:
    """The panel's components."""

    question: gr.Textbox
    system: gr.Textbox
    token: gr.Textbox
    run: gr.Button
    stop: gr.Button
    columns: list[SideColumn]
    difference: gr.HTML

    @property
    def shown(self) -> list[Any]:
        """The components that ``shown_values`` fills."""
        return [part for column in self.columns for part in (column.settings[0], column.settings[5])]


def shown_values(control: ModelControl, status: ModelStatus) -> tuple[Any, ...]:
    """What ``status`` changes in the panel: the levels of thinking, and the models to pick."""
    if status.stage != "ready":
        return (gr.skip(), gr.skip()) * len(SIDE_NAMES)
    return (_thinking(status), gr.Dropdown(choices=_models(control, status))) * len(SIDE_NAMES)


def _models(control: ModelControl, status: ModelStatus) -> list[tuple[str, str]]:
    """The models that a side can ask, as (label, name)."""
    beside = [(f"{status.beside} (the other server)", BESIDE)] if status.beside else []
    return [THE_LOADED, *beside, *labelled(control)]


def _thinking(status: ModelStatus) -> gr.Dropdown:
    levels = status.switches.thinking
    words = "" if levels else f"{status.title or status.model} has no thinking to switch."
    choices = [AS_IT_IS, *((level, level) for level in levels)]
    return gr.Dropdown(choices=choices, interactive=bool(levels), info=words or None)


def to_request(
    backend: Backend,
    control: ModelControl,
    question: str | None,
    system: str | None,
    values: Sequence[Any],
    allow: Callable[[], None],
) -> GenerationRequest:
    """One side's request. ``allow`` raises where its visitor may not load a model. Raises InvalidRequestError."""
    thinking, temperature, top_p, seed, max_tokens, model, precision = values
    if not question or not question.strip():
        raise InvalidRequestError("Write a question first.")
    options = None
    if model == BESIDE and backend.status().beside:
        if precision != "Automatic":
            raise InvalidRequestError("The other server chooses the precision itself. Leave it at Automatic.")
        options = LoadOptions(BESIDE)
    elif model or precision != "Automatic":
        allow()
        model = model or backend.status().model
        if model not in {choice.name for choice in control.choices()}:
            raise InvalidRequestError("Only the models in the list can be loaded here. Choose the loaded model.")
        options = load_options(model, precision, "auto", 0)
    first = [Message("system", system.strip())] if system and system.strip() else []
    sampling = SamplingParams(temperature=temperature, top_p=top_p, seed=to_seed(seed), max_tokens=max_tokens)
    controls = Controls(thinking=thinking or None)
    return GenerationRequest((*first, Message("user", question)), sampling=sampling, controls=controls, model=options)


def layout(backend: Backend, control: ModelControl, access: Access) -> SideBySideTab:
    """Place the components."""
    with gr.Column(elem_id="compare", elem_classes="drawer"):
        about = "One question under two settings. Nothing of it enters the conversation."
        gr.HTML(panel_head("Side by side", about), padding=False)
        question = gr.Textbox(label="Question", lines=2, max_lines=8, elem_id="compare-question")
        system = gr.Textbox(label="System prompt (both)", lines=1, max_lines=6, elem_id="compare-system")
        with gr.Row():
            columns = [_column(name, backend.status(), control) for name in SIDE_NAMES]
        token = gr.Textbox(
            label="Admin token",
            info="To load another model than the one that answers.",
            type="password",
            visible=access.public,
            elem_id="compare-token",
        )
        with gr.Row():
            run = gr.Button("Ask both", variant="primary", elem_id="compare-run")
            stop = gr.Button("Stop both", variant="stop", visible=False, elem_id="compare-stop")
        difference = gr.HTML(elem_id="compare-difference")
        with gr.Row():
            screens = [_screen(name) for name in SIDE_NAMES]
    pairs = zip(columns, screens, strict=True)
    return SideBySideTab(
        question, system, token, run, stop, [SideColumn(settings, *screen) for settings, screen in pairs], difference
    )


def _column(name: str, status: ModelStatus, control: ModelControl) -> list[Any]:
    models = _models(control, status)
    with gr.Column(min_width=300, elem_id=f"compare-{name.lower()}"), gr.Group():
        gr.Markdown(f"#### {name}", elem_classes="side")
        thinking = _thinking(status)
        thinking.label, thinking.value = "Thinking", ""
        with gr.Row():
            temperature = gr.Number(0, label="Temperature", minimum=0, maximum=2, step=0.1, min_width=90)
            top_p = gr.Number(1, label="Top-p", minimum=0.01, maximum=1, step=0.05, min_width=90)
        with gr.Row():
            # Gradio turns an empty number into 0 as soon as it is shown.
            seed = gr.Textbox("", label="Seed", placeholder="random", min_width=90)
            tokens = gr.Number(512, label="Max new tokens", precision=0, minimum=1, min_width=90)
        with gr.Row(visible=len(models) > 1):
            model = gr.Dropdown(models, value="", label="Model", min_width=130)
            precision = gr.Dropdown(list(PRECISION_OPTIONS), value="Automatic", label="Precision", min_width=130)
    return [thinking, temperature, top_p, seed, tokens, model, precision]


def _screen(name: str) -> tuple[gr.Accordion, gr.Markdown, gr.Markdown, gr.HTML]:
    with gr.Column(min_width=300, elem_classes="side-answer"):
        gr.Markdown(f"#### {name}", elem_classes="side")
        with gr.Accordion(NO_THOUGHTS, open=False) as thoughts:
            thinking = gr.Markdown(latex_delimiters=markdown.DELIMITERS)
        answer = gr.Markdown(latex_delimiters=markdown.DELIMITERS, elem_id=f"answer-{name.lower()}", buttons=["copy"])
        costs = gr.HTML(elem_id=f"costs-{name.lower()}")
    return thoughts, thinking, answer, costs


def wire(tab: SideBySideTab, backend: Backend, control: ModelControl, access: Access, demo: gr.Blocks) -> None:
    """Connect the events."""
    screen = [part for column in tab.columns for part in column.screen]
    panel = StreamingPanel(backend, [tab.run, tab.stop], run_or_stop, tab.difference, screen)

    async def compare(visit: Visit, question: Any, system: Any, token: Any, *settings: Any) -> AsyncGenerator[Update]:
        def build(side: Sequence[Any]) -> GenerationRequest:
            allow = partial(access.check, token, visit.address)
            return to_request(visit.backend, control, question, system, side, allow)

        async with aclosing(answers(tab, visit, build, settings)) as updates:
            async for update in updates:
                yield update

    inputs = [tab.question, tab.system, tab.token, *(part for column in tab.columns for part in column.settings)]
    panel.start("compare", [tab.run.click, tab.question.submit], compare, inputs)
    panel.stop(tab.stop.click)
    panel.stop_on_leave(demo)


async def answers(
    tab: SideBySideTab, visit: Visit, build: Callable[[Sequence[Any]], GenerationRequest], settings: Sequence[Any]
) -> AsyncGenerator[Update]:
    """Yield what the panel shows while both sides are answered. ``build`` makes a request of the settings of a side."""
    half = len(settings) // len(SIDE_NAMES)
    sides = [settings[:half], settings[half:]]

    def stream(side: Sequence[Any]) -> AsyncGenerator[Snapshot]:
        return snapshots(visit.backend, partial(build, side), visit.stop)

    def shown(latest: Latest, words: Sequence[str]) -> Update:
        update: Update = {}
        for column, shot, waiting in zip(tab.columns, latest, words, strict=True):
            update |= zip(column.screen, _shown(shot, waiting), strict=True)
        return update

    together = _together(visit.backend.status(), [(model, precision) for *_, model, precision in sides])
    first, *others = SIDE_NAMES
    waits = ["Waiting"] + ["Waiting" if together else f"Answered after {first}"] * len(others)
    latest: Latest = [None] * len(SIDE_NAMES)
    yield {**visit.busy, tab.difference: "", **shown(latest, waits)}
    async with aclosing(side_by_side([partial(stream, side) for side in sides], visit.stop, together)) as states:
        async for latest in states:
            yield shown(latest, waits)
    words = difference_words(*[shot for shot in latest if shot]) if all(latest) else ""
    yield {tab.difference: note_html(words) if words else "", **shown(latest, ["Not asked"] * len(SIDE_NAMES))}


def _together(status: ModelStatus, asked: Sequence[tuple[Any, Any]]) -> bool:
    """Whether the sides are answered at the same time: not where one needs the memory of the other.

    On an engine that answers in turns, each side would look slower than it is.
    """
    if any(precision != "Automatic" or model not in ("", BESIDE) for model, precision in asked):
        return False
    return not status.in_turns or sum(model == "" for model, _ in asked) < 2


def _shown(shot: Snapshot | None, waiting: str) -> tuple[Any, ...]:
    if shot is None:
        return gr.Accordion(label=NO_THOUGHTS), "", "", note_html(waiting)
    answer = shot.answer
    title = f"Thinking · {answer.thinking_tokens:,} tokens" if answer.thinking else NO_THOUGHTS
    return gr.Accordion(label=title), _text(answer.thinking), _text(answer.text), costs_html(shot)


def _text(text: str) -> str:
    return markdown.shown_text(text)


def costs_html(shot: Snapshot) -> str:
    """What an answer cost so far, as a table, with its note when it ended in an error."""
    answer = shot.answer
    seconds = _seconds(shot)
    rate = answer.finish.timings.decode_rate(answer.tokens) if answer.finish else None
    rows = (
        ("Tokens", f"{answer.tokens:,}"),
        ("of them thinking", f"{answer.thinking_tokens:,}" if answer.thinking_tokens else ""),
        ("Time to first token", "" if answer.ttft is None else f"{answer.ttft:.2f} s"),
        ("Tokens/s", "" if rate is None else f"{rate:.1f}"),
        ("Total time", f"{seconds:.2f} s"),
    )
    cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows if value)
    return f'{note_html(shot.note, shot.kind)}<table class="costs"><tbody>{cells}</tbody></table>'


def difference_words(a: Snapshot, b: Snapshot) -> str:
    """The difference of the two answers in words; empty unless both have ended by themselves."""
    if any(shot.answer.finish is None or shot.answer.finish.reason == "stopped" for shot in (a, b)):
        return ""
    sentences = [
        _ratio("used", "the tokens of", a.answer.tokens, b.answer.tokens, ","),
        _ratio("took", "the time of", _seconds(a), _seconds(b), ".2f", " s"),
    ]
    thoughts = a.answer.thinking_tokens, b.answer.thinking_tokens
    if any(thoughts):
        sentences.append(f"Thinking took {thoughts[0]:,} tokens in A and {thoughts[1]:,} in B.")
    same = a.answer.text.strip() == b.answer.text.strip()
    sentences.append("The answers are the same, letter by letter." if same else "The answers differ.")
    return " ".join(sentences)


def _ratio(verb: str, what: str, a: float, b: float, style: str, unit: str = "") -> str:
    if abs(a - b) <= SAME * max(a, b) or not min(a, b):
        return (
            f"A {verb} {a:{style}}{unit} and B {b:{style}}{unit}{' tokens' if what.startswith('the tokens') else ''}."
        )
    (more, large), (less, small) = sorted((("A", a), ("B", b)), key=lambda side: -side[1])
    return (
        f"{more} {verb} {large / small:.1f} times {what} {less} ({large:{style}}{unit} against {small:{style}}{unit})."
    )


def _seconds(shot: Snapshot) -> float:
    return shot.answer.finish.timings.total if shot.answer.finish else shot.elapsed
