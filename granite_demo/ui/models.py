"""The model part of the Settings tab: pick, load, cancel, unload; what was chosen and why; memory; configuration.

Loading another model changes it for everybody. Where strangers can reach the page it takes the admin token, and the
handlers check it: hiding a button protects nothing, since every event can be called without the page.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from granite_demo.access import Access
from granite_demo.backend import ModelControl
from granite_demo.errors import GraniteDemoError, InvalidRequestError
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.model_status import ModelStatus
from granite_demo.ui.gradio_patches.events import BUSY_SECONDS, DIRECT
from granite_demo.ui.html import facts_html, memory_html, note_html
from granite_demo.ui.streaming import address

PRECISION_OPTIONS: dict[str, dict[str, Any]] = {
    "Automatic": {},
    "bfloat16": {"dtype": "bfloat16", "quantization": "none"},
    "float32": {"dtype": "float32", "quantization": "none"},
    "int8 (bitsandbytes)": {"quantization": "int8"},
    "int4 nf4 (bitsandbytes)": {"quantization": "nf4"},
    "int4 fp4 (bitsandbytes)": {"quantization": "fp4"},
}
ATTENTIONS = ["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4"]


@dataclass(frozen=True, slots=True)
class ModelPanel:
    """The panel's components."""

    choice: gr.Dropdown
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
        return [self.memory, self.facts, self.card, self.cancel, self.choice]


def shown_values(control: ModelControl, status: ModelStatus) -> tuple[Any, ...]:
    """What ``status`` shows in the panel."""
    busy = status.stage not in ("ready", "failed", "idle")
    tables = memory_html(status.memory), facts_html(status.facts), facts_html(status.card)
    # Once a model is ready its device is known, and with it what fits there.
    choices = gr.Dropdown(choices=labelled(control)) if status.stage == "ready" else gr.skip()
    return *tables, gr.Button(visible=busy), choices


def labelled(control: ModelControl) -> list[tuple[str, str]]:
    """The models to pick, as (label, name)."""
    return [(choice.label, choice.name) for choice in control.choices()]


def layout(control: ModelControl, access: Access) -> ModelPanel:
    """Place the components. Call inside the tab."""
    choices = labelled(control)
    gr.Markdown("### Model\nFor everybody who uses this server.")
    with gr.Group(visible=bool(choices)):
        with gr.Row():
            choice = gr.Dropdown(
                choices, value=None, label="Model", elem_id="model-choice", info="Size, and whether it fits here."
            )
            precision = gr.Dropdown(list(PRECISION_OPTIONS), value="Automatic", label="Precision", elem_id="precision")
        with gr.Row():
            attention = gr.Dropdown(ATTENTIONS, value="auto", label="Attention", elem_id="attention")
            context = gr.Number(
                0, label="Context limit", precision=0, minimum=0, info="Tokens; 0 is what the model allows and fits."
            )
            keep = gr.Checkbox(False, label="Keep a quantized copy", info="It loads faster the next time.")
            token = gr.Textbox(label="Admin token", type="password", visible=access.public, elem_id="admin-token")
    with gr.Row():
        load = gr.Button("Load", variant="primary", elem_id="load", visible=bool(choices))
        cancel = gr.Button("Cancel the load", variant="stop", elem_id="cancel-load", visible=False)
        unload = gr.Button("Unload", elem_id="unload", visible=bool(choices))
    message = gr.HTML(elem_id="load-message")
    memory = gr.HTML(elem_id="memory")
    facts = gr.HTML(elem_id="facts")
    with gr.Accordion("Configuration", open=False):
        card = gr.HTML(elem_id="card")
    return ModelPanel(
        choice, precision, attention, context, keep, token, load, cancel, unload, message, memory, facts, card
    )


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
            if not model:
                raise InvalidRequestError("Choose a model first.")
            control.select(load_options(model, precision, attention, context, keep))

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
