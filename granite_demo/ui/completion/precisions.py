"""Precision A/B: one model in two precisions reads the same text, and the page shows where they differ."""

import html
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import gradio as gr

from granite_demo.access import Access
from granite_demo.backend import Backend
from granite_demo.errors import GraniteDemoError, InvalidRequestError, log_unexpected
from granite_demo.types.comparison import Comparing, Comparison, to_csv
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.model_status import ModelStatus
from granite_demo.types.requests import CompareRequest
from granite_demo.types.stop import Stop
from granite_demo.ui.completion import token_view
from granite_demo.ui.completion.precision_charts import figure, heat_html, summary_html, worst_html
from granite_demo.ui.executor import off_loop
from granite_demo.ui.gradio_patches.events import DIRECT, follow
from granite_demo.ui.html import note_html
from granite_demo.ui.models import PRECISION_OPTIONS, load_options
from granite_demo.ui.streaming import Kind, StreamingPanel, Update, Visit, paced, run_or_stop

EXAMPLE = (
    "Granite is a coarse-grained igneous rock made mostly of quartz, feldspar and mica. It forms when magma cools "
    "slowly deep underground, so its crystals grow large enough to be seen. In 1994 about 2.5 million tonnes were "
    "quarried for buildings; 12 * 12 = 144, and def area(w, h): return w * h are harder for a small model."
)
ABOUT = (
    "The model reads one text in both precisions, one after the other, and in each place of it the two distributions "
    "are compared. It is loaded for that, which takes memory and time of everybody who uses this server."
)
PUBLIC = "On this public page it needs the admin token, as loading another model does."
SAVE_CSV_JS = """(text) => {
  if (!text) return [];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "precisions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  return [];
}"""


class ComparisonStep(NamedTuple):
    """The state of a comparison."""

    progress: Comparing | None
    result: Comparison | None = None
    note: str = ""
    kind: Kind = "note"


@dataclass(frozen=True, slots=True)
class PrecisionsTab:
    """The tab's components."""

    reason: gr.HTML
    text: gr.Textbox
    reference: gr.Dropdown
    other: gr.Dropdown
    token: gr.Textbox
    run: gr.Button
    cancel: gr.Button
    note: gr.HTML
    summary: gr.HTML
    heat: gr.HTML
    plot: gr.Plot
    worst: gr.HTML
    save: gr.Button
    csv: gr.Textbox

    @property
    def shown(self) -> list[Any]:
        """The components that ``shown_values`` fills."""
        return [self.reason, self.run, self.reference, self.other]


def own_precision(status: ModelStatus) -> str:
    """The name in ``PRECISION_OPTIONS`` of how the model is loaded; Automatic where it is none of them."""
    own = status.setup.label if status.setup else ""
    labels = {name: LoadOptions(**options).label for name, options in PRECISION_OPTIONS.items()}
    return next((name for name, label in labels.items() if label == own), "Automatic")


def choices(status: ModelStatus) -> list[str]:
    """The precisions that this machine can load, the model's own first."""
    quantized = find_spec("bitsandbytes") is not None and not (status.setup and status.setup.device.value == "mps")
    names = [
        name
        for name, options in PRECISION_OPTIONS.items()
        if options and (quantized or options.get("quantization") in (None, "none"))
    ]
    own = own_precision(status)
    return sorted(names, key=lambda name: name != own)


def shown_values(status: ModelStatus, chosen: Sequence[Any] = ()) -> tuple[Any, ...]:
    """What ``status`` changes in the tab: whether precisions can be compared here, and which.

    ``chosen`` are the two that stand in the boxes, which stay if they can.
    """
    why = status.unable_to("comparing precisions")
    reason = gr.HTML(note_html(why) if why else "", visible=bool(why))
    if status.stage != "ready":
        return reason, gr.Button(interactive=not why), gr.skip(), gr.skip()
    names = choices(status)
    values = chosen if chosen and all(name in names for name in chosen) else names[:2]
    boxes = (gr.Dropdown(choices=names, value=name, interactive=not why) for name in values)
    return reason, gr.Button(interactive=not why), *boxes


def to_request(backend: Backend, text: Any, reference: Any, other: Any) -> CompareRequest:
    """The visitor's values as a request. Raises InvalidRequestError."""
    status = backend.status()
    if why := status.unable_to("comparing precisions"):
        raise InvalidRequestError(why)
    if not str(text or "").strip():
        raise InvalidRequestError("Write a text to compare on.")
    return CompareRequest(str(text), _side(status, reference), _side(status, other))


def _side(status: ModelStatus, precision: Any) -> LoadOptions:
    if not isinstance(precision, str):
        raise InvalidRequestError("Choose two precisions from the lists.")
    return load_options(status.model, precision, "auto", 0)


async def steps(backend: Backend, build: Callable[[], CompareRequest], stop: Stop) -> AsyncGenerator[ComparisonStep]:
    """Yield the states of the comparison, until it is done or ``stop`` is set. An error becomes a note."""
    last: Comparing | None = None
    try:
        async with aclosing(paced(backend.compare(await off_loop(build)))) as batches:
            async for batch in batches:
                if stop.is_set():
                    yield ComparisonStep(None, note="Cancelled.")
                    return
                for event in batch:
                    if isinstance(event, Comparison):
                        yield ComparisonStep(None, event)
                        return
                    last = event
                yield ComparisonStep(last)
    except GraniteDemoError as error:
        yield ComparisonStep(None, note=error.user_text, kind="error")
    except Exception as error:
        yield ComparisonStep(None, note=log_unexpected(error), kind="error")


def progress_html(progress: Comparing | None) -> str:
    """What is done right now, with a bar."""
    words = html.escape(progress.text if progress else "Waiting")
    value = "" if progress is None or progress.fraction is None else f' value="{progress.fraction:.3f}"'
    return (
        f'<div class="status busy"><span>{words}</span><progress max="1"{value} aria-label="{words}"></progress></div>'
    )


def layout(backend: Backend, access: Access) -> PrecisionsTab:
    """Place the components. Call inside the tab."""
    names = choices(backend.status())
    gr.Markdown(f"{ABOUT} {PUBLIC}" if access.public else ABOUT)
    reason = gr.HTML(elem_id="precisions-reason", visible=False)
    text = gr.Textbox(EXAMPLE, label="Text", elem_id="precisions-text", lines=4, max_lines=16)
    with gr.Row():
        reference = gr.Dropdown(names, value=names[0], label="Reference", elem_id="precision-a")
        other = gr.Dropdown(names, value=names[1], label="Compared with it", elem_id="precision-b")
    token = gr.Textbox(label="Admin token", type="password", visible=access.public, elem_id="precisions-token")
    with gr.Row():
        run = gr.Button("Compare", variant="primary", elem_id="precisions-run")
        cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="precisions-cancel")
    note = gr.HTML(elem_id="precisions-note")
    # Empty, it is hidden by the style sheet: Gradio loses updates of what it has not placed yet.
    with gr.Column(elem_id="precisions"):
        summary = gr.HTML(elem_id="precisions-summary")
        heat = token_view.view("precisions-heat")
        plot = gr.Plot(show_label=False, elem_id="precisions-plot")
        gr.Markdown("#### Where they differ most")
        worst = gr.HTML(elem_id="precisions-worst")
        save = gr.Button("Save as CSV", size="sm", elem_id="precisions-save")
    csv = gr.Textbox(visible=False)
    return PrecisionsTab(
        reason, text, reference, other, token, run, cancel, note, summary, heat, plot, worst, save, csv
    )


def wire(tab: PrecisionsTab, backend: Backend, access: Access, demo: gr.Blocks, ready: list[Any]) -> None:
    """Connect the events. ``ready``: those after which another model may answer."""
    results = [tab.summary, tab.heat, tab.plot, tab.worst, tab.csv]
    panel = StreamingPanel(backend, [tab.run, tab.cancel], run_or_stop, tab.note, results)

    async def compare(visit: Visit, text: Any, reference: Any, other: Any, token: Any) -> AsyncGenerator[Update]:
        def build() -> CompareRequest:
            access.check(str(token or ""), visit.address)
            return to_request(visit.backend, text, reference, other)

        yield {**visit.busy, tab.note: progress_html(None)}
        step = ComparisonStep(None)
        async with aclosing(steps(visit.backend, build, visit.stop)) as updates:
            async for step in updates:
                if step.progress:
                    yield {tab.note: progress_html(step.progress)}
        values = await off_loop(result_values, step.result, str(text)) if step.result else ()
        note = note_html(step.note, step.kind) if step.note else ""
        yield {tab.note: note, **dict(zip(results, values, strict=False))}

    panel.start("compare", [tab.run.click], compare, [tab.text, tab.reference, tab.other, tab.token])
    panel.stop(tab.cancel.click)
    panel.stop_on_leave(demo)
    # Made by the browser from what it has: no file on the server.
    tab.save.click(None, [tab.csv], None, js=SAVE_CSV_JS, **DIRECT)
    boxes = [tab.reference, tab.other]
    demo.load(lambda: shown_values(backend.status()), None, tab.shown, **DIRECT)
    follow(ready, lambda *chosen: shown_values(backend.status(), chosen), boxes, tab.shown)


def result_values(result: Comparison, text: str) -> tuple[Any, ...]:
    """What the results show: summary, heat map, figure, worst places and file."""
    return summary_html(result), heat_html(result, text), figure(result), worst_html(result), to_csv(result)
