"""The picker under the name of the model: load, cancel, unload; and what the Settings tab shows of the model.

Loading another model changes it for everybody. Where strangers can reach the page it takes the admin token, and the
handlers check it: hiding a button protects nothing, since every event can be called without the page.
"""

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from granite_demo.access import Access
from granite_demo.backend import ModelControl
from granite_demo.errors import GraniteDemoError, InvalidRequestError
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.model_status import ModelChoice, ModelStatus, gigabytes
from granite_demo.ui.gradio_patches.events import BUSY_SECONDS, DIRECT
from granite_demo.ui.html import facts_html, memory_html, note_html
from granite_demo.ui.streaming import address
from granite_demo.ui.theme import script

PRECISION_OPTIONS: dict[str, dict[str, Any]] = {
    "Automatic": {},
    "bfloat16": {"dtype": "bfloat16", "quantization": "none"},
    "float32": {"dtype": "float32", "quantization": "none"},
    "int8 (bitsandbytes)": {"quantization": "int8"},
    "int4 nf4 (bitsandbytes)": {"quantization": "nf4"},
    "int4 fp4 (bitsandbytes)": {"quantization": "fp4"},
}
FIXED = "This server runs one model, which cannot be changed here."
ATTENTIONS = ["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4"]


@dataclass(frozen=True, slots=True)
class ModelPanel:
    """The components of the picker, and of the Settings tab."""

    listing: gr.HTML
    choice: gr.Textbox
    """The name, path or search that is typed."""
    precision: gr.Dropdown
    attention: gr.Dropdown
    context: gr.Number
    keep: gr.Checkbox
    token: gr.Textbox
    load: gr.Button
    cancel: gr.Button
    unload: gr.Button
    message: gr.HTML
    memory: gr.HTML
    facts: gr.HTML
    card: gr.HTML

    @property
    def shown(self) -> list[Any]:
        """The components that ``shown_values`` fills."""
        return [self.memory, self.facts, self.card, self.cancel, self.listing]


def shown_values(control: ModelControl, status: ModelStatus) -> tuple[Any, ...]:
    """What ``status`` shows in the panel."""
    busy = status.stage not in ("ready", "failed", "idle")
    tables = memory_html(status.memory), facts_html(status.facts), facts_html(status.card)
    return *tables, gr.Button(visible=busy), models_html(control.choices(), status)


def labelled(control: ModelControl) -> list[tuple[str, str]]:
    """The models to pick, as (label, name)."""
    return [(choice.label, choice.name) for choice in control.choices()]


def models_html(choices: tuple[ModelChoice, ...], status: ModelStatus) -> str:
    """The models by place, with size and mark; a model to download has a question below it."""
    loaded = {status.model, status.name} if status.stage == "ready" else set[str]()
    groups: dict[str, list[ModelChoice]] = {"Loaded": [], "On this disk": [], "To download": []}
    for choice in choices:
        place = "Loaded" if choice.name in loaded else "On this disk" if choice.here else "To download"
        groups[place].append(choice)
    groups["To download"].sort(key=lambda choice: (choice.mark == "does not fit", choice.size))
    sections = "".join(
        f"<section><h3>{place}</h3>{''.join(_row(choice, place) for choice in found)}</section>"
        for place, found in groups.items()
        if found
    )
    none = '<p class="none" hidden>No model of the list matches. Press Enter to load this name or path.</p>'
    return f'<div class="models">{sections}{none if choices else note_html(FIXED)}</div>'


def _row(choice: ModelChoice, place: str) -> str:
    off = ' aria-disabled="true"' if place == "Loaded" or choice.mark == "does not fit" else ""
    size = gigabytes(choice.size) if choice.size else ""
    title = choice.title or choice.label
    small = " · ".join(filter(None, (choice.name if choice.title else "", size)))
    mark = "loaded" if place == "Loaded" else choice.mark
    about = "" if choice.mark in ("", "fits") else f"<small>{html.escape(choice.reason)}</small>"
    row = (
        f'<button type="button" class="model" data-model="{html.escape(choice.name)}"'
        f' data-text="{html.escape(f"{title} {choice.label}".lower())}"{off}>'
        f"<b>{html.escape(title)}</b><em>{html.escape(mark)}</em><small>{html.escape(small)}</small>{about}</button>"
    )
    if place != "To download" or off:
        return row
    amount = f"Download {size} and load it?" if size else "Download and load it?"
    yes = '<button type="button" class="primary" data-yes>Download</button>'
    return f'{row}<div class="ask" hidden><span>{amount}</span>{yes}<button type="button">Cancel</button></div>'


def offered(choices: tuple[ModelChoice, ...], loaded: str) -> ModelChoice | None:
    """The model to offer instead of ``loaded``, the sample: one on this disk that fits, else the smallest that fits."""
    fit = (choice for choice in choices if choice.size and choice.mark in ("fits", "tight"))
    chat = (choice for choice in fit if choice.name != loaded and "base" not in choice.name)
    return min(chat, key=lambda choice: (not choice.here, choice.size), default=None)


def picker_layout(control: ModelControl, access: Access) -> dict[str, Any]:
    """Place the picker, a sheet under the name of the model."""
    choices, several = control.choices(), bool(control.choices())
    with gr.Column(elem_id="picker", elem_classes="sheet"):
        choice = gr.Textbox(
            label="Model",
            show_label=False,
            placeholder="Search, or type owner/name or a path on the server",
            elem_id="model-choice",
            max_lines=1,
            visible=several,
        )
        listing = gr.HTML(
            models_html(choices, ModelStatus("", "idle")),
            js_on_load=script("assets/picker.js"),
            elem_id="model-list",
            padding=False,
        )
        message = gr.HTML(elem_id="load-message", padding=False)
        token = gr.Textbox(
            label="Admin token",
            info="Another model is for everybody who uses this server, so it takes the admin token.",
            type="password",
            visible=access.public and several,
            elem_id="admin-token",
        )
        with gr.Accordion("How to load it", open=False, visible=several, elem_id="load-options"):
            with gr.Row():
                precision = gr.Dropdown(
                    list(PRECISION_OPTIONS), value="Automatic", label="Precision", elem_id="precision"
                )
                attention = gr.Dropdown(ATTENTIONS, value="auto", label="Attention", elem_id="attention")
            context = gr.Number(
                0, label="Context limit", precision=0, minimum=0, info="Tokens; 0 is what the model allows and fits."
            )
            keep = gr.Checkbox(False, label="Keep a quantized copy", info="It loads faster the next time.")
        with gr.Row():
            load = gr.Button("Load", variant="primary", elem_id="load", visible=several)
            cancel = gr.Button("Cancel the load", variant="stop", elem_id="cancel-load", visible=False)
            unload = gr.Button("Unload", elem_id="unload", visible=several)
    names = ("listing", "choice", "precision", "attention", "context", "keep", "token", "load", "cancel", "unload")
    parts = (listing, choice, precision, attention, context, keep, token, load, cancel, unload)
    return dict(zip(names, parts, strict=True), message=message)


def layout(picker: dict[str, Any]) -> ModelPanel:
    """Place what the Settings tab shows of the model. Call inside the tab."""
    gr.Markdown("### Model\nHow it runs, and why.")
    memory = gr.HTML(elem_id="memory")
    facts = gr.HTML(elem_id="facts")
    with gr.Accordion("Configuration", open=False):
        card = gr.HTML(elem_id="card")
    return ModelPanel(**picker, memory=memory, facts=facts, card=card)


def wire(panel: ModelPanel, control: ModelControl, access: Access, timer: gr.Timer) -> None:
    """Connect the events. ``timer`` is sped up when there is progress to show."""

    def load(
        visit: gr.Request,
        model: str | None,
        precision: str,
        attention: str,
        context: Any,
        keep: Any,
        token: str | None,
    ) -> tuple[Any, Any]:
        def begin() -> None:
            if not (name := (model or "").strip()):
                raise InvalidRequestError("Choose a model first.")
            control.select(load_options(name, precision, attention, context, keep))

        return guarded(visit, begin, token, f"Loading {model}. The present model answers until it is ready.")

    def cancel(visit: gr.Request, token: str | None) -> tuple[Any, Any]:
        return guarded(visit, control.cancel_load, token, "Cancelling.")

    def unload(visit: gr.Request, token: str | None) -> tuple[Any, Any]:
        return guarded(visit, control.unload, token, "Unloaded. The next message loads it again.")

    def guarded(visit: gr.Request, action: Callable[[], None], token: str | None, done: str) -> tuple[Any, Any]:
        try:
            access.check(token, address(visit))
            action()
            return note_html(done), gr.Timer(BUSY_SECONDS)
        except GraniteDemoError as error:
            return note_html(error.user_text, "error"), gr.skip()

    inputs = [panel.choice, panel.precision, panel.attention, panel.context, panel.keep, panel.token]
    panel.load.click(load, inputs, [panel.message, timer], **DIRECT)
    panel.cancel.click(cancel, [panel.token], [panel.message, timer], **DIRECT)
    panel.unload.click(unload, [panel.token], [panel.message, timer], **DIRECT)


def load_options(model: str, precision: str, attention: str, context: Any, keep: Any = False) -> LoadOptions:
    """The visitor's choice as load options. Raises InvalidRequestError for values the page does not offer."""
    if precision not in PRECISION_OPTIONS or attention not in ATTENTIONS:
        raise InvalidRequestError("Choose a precision and an attention from the lists.")
    limit = 0 if context in (None, "") else context
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 <= limit <= 10_000_000:
        raise InvalidRequestError("The context limit must be a number of tokens, 0 for none.")
    options: dict[str, Any] = {
        "attention": attention,
        "context": int(limit) or None,
        "keep_quantized": keep is True,
        **PRECISION_OPTIONS[precision],
    }
    return LoadOptions(model, **options)
