"""The model's switches in the Chat tab. One that its template does not read is off, with the reason."""

from dataclasses import dataclass
from typing import Any, get_args

import gradio as gr

from granite_demo.backend import Backend
from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation
from granite_demo.prompts.template_features import reasons
from granite_demo.types.messages import Length, Originality, Switches
from granite_demo.ui.gradio_patches.events import DIRECT, follow

DEFAULT = ("Default", "")
NO_SWITCH = "The loaded model has no switch for this."
LENGTHS = [DEFAULT, *((value.capitalize(), value) for value in get_args(Length))]
ORIGINALITIES = [DEFAULT, *((value.capitalize(), value) for value in get_args(Originality))]
THINKING = {"off": "Off", "low": "Low", "full": "Full"}

SUMMARY_JS = """(value) => [{
  system: value?.system ?? "", tools: value?.tools ?? "", controls: value?.controls ?? {},
  documents: value?.documents?.length ? [{ title: "", text: "" }] : []
}]"""
"""What decides which switches have an effect: the turns and the documents' texts need not travel."""

CONTROLS_JS = """(value, thinking, length, originality, citations, hallucinations) => {
  const all = Object.entries({ thinking, length, originality, citations, hallucinations });
  return [{ ...value, controls: Object.fromEntries(all.filter(([, chosen]) => chosen)) }];
}"""
"""In the browser alone, as ``conversations.dump`` would: a round trip would undo what was said meanwhile."""


@dataclass(frozen=True, slots=True)
class SwitchPanel:
    """The panel's components."""

    thinking: gr.Radio
    length: gr.Dropdown
    originality: gr.Dropdown
    citations: gr.Checkbox
    hallucinations: gr.Checkbox

    @property
    def controls(self) -> list[Any]:
        """The switches, in the order of ``messages.Controls``."""
        return [self.thinking, self.length, self.originality, self.citations, self.hallucinations]

    @property
    def shown(self) -> list[Any]:
        """The components that ``shown_values`` fills."""
        return self.controls


def layout() -> SwitchPanel:
    """Place the components, in a sheet that the composer opens."""
    with gr.Column(elem_id="switches", elem_classes="sheet"):
        off: dict[str, Any] = {"interactive": False, "info": NO_SWITCH}
        thinking = gr.Radio([DEFAULT], value="", label="Thinking", elem_id="thinking", **off)
        with gr.Row():
            length = gr.Dropdown(LENGTHS, value="", label="Length", min_width=120, **off)
            originality = gr.Dropdown(ORIGINALITIES, value="", label="Originality", min_width=120, **off)
        citations = gr.Checkbox(False, label="Citations", **off)
        hallucinations = gr.Checkbox(False, label="Hallucination list", **off)
    return SwitchPanel(thinking, length, originality, citations, hallucinations)


def shown_values(switches: Switches, conversation: Conversation) -> tuple[Any, ...]:
    """What the panel shows for a model with ``switches``: one that it has not, or that does nothing now, is off."""
    given = conversation.controls
    why = reasons(
        switches,
        system=bool(conversation.system.strip()),
        tools=bool(conversation.tools.strip()),
        documents=bool(conversation.documents),
    )

    def state(name: str, has: bool) -> dict[str, Any]:
        return {"interactive": has and name not in why, "info": why.get(name, "") if has else NO_SWITCH}

    levels = [DEFAULT, *((THINKING[level], level) for level in switches.thinking)]
    thinking = given.thinking if given.thinking in switches.thinking else None
    return (
        gr.Radio(levels, value=thinking or "", **state("thinking", bool(switches.thinking))),
        gr.Dropdown(LENGTHS, value=given.length or "", **state("length", switches.length)),
        gr.Dropdown(ORIGINALITIES, value=given.originality or "", **state("originality", switches.originality)),
        gr.Checkbox(given.citations, **state("citations", switches.citations)),
        gr.Checkbox(given.hallucinations, **state("hallucinations", switches.hallucinations)),
    )


def wire(panel: SwitchPanel, holder: gr.JSON, backend: Backend, when: list[Any]) -> None:
    """Keep what is chosen in the conversation. After the events ``when`` other switches may have an effect."""

    def refresh(value: Any) -> Any:
        return shown_values(backend.status().switches, conversations.load(value))

    for control in panel.controls:
        control.input(None, [holder, *panel.controls], [holder], js=CONTROLS_JS, **DIRECT)
    follow(when, refresh, [holder], panel.shown, js=SUMMARY_JS)
