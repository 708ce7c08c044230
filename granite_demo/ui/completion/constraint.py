"""What the continuation has to be: JSON, a pattern or one of some texts, as the visitor writes it."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from granite_demo.errors import InvalidRequestError
from granite_demo.types.constraints import Constraint
from granite_demo.types.events import FinishReason
from granite_demo.types.model_status import ModelStatus
from granite_demo.ui.gradio_patches.events import follow

KINDS = [
    ("Nothing", ""),
    ("JSON object", "json_object"),
    ("JSON schema", "json_schema"),
    ("Regular expression", "regex"),
    ("Choice list", "choice"),
]
EXAMPLE_SCHEMA = """{
  "type": "object",
  "properties": {
    "name": {"type": "string", "maxLength": 40},
    "age": {"type": "integer", "minimum": 0, "maximum": 120}
  },
  "required": ["name", "age"],
  "additionalProperties": false
}"""
PATTERN = r" ?(19|20)\d{2}-(0[1-9]|1[0-2])-[0-3]\d"
EXAMPLE_CHOICES = "yes\nno\nmaybe"


@dataclass(frozen=True, slots=True)
class ConstraintPanel:
    """The panel's components."""

    kind: gr.Radio
    schema: gr.Textbox
    pattern: gr.Textbox
    choices: gr.Textbox

    @property
    def components(self) -> list[Any]:
        """The arguments of ``to_constraint``, in order."""
        return [self.kind, self.schema, self.pattern, self.choices]


def to_constraint(kind: Any, schema: Any, pattern: Any, choices: Any) -> Constraint | None:
    """What was written as a constraint, None for nothing. Raises InvalidRequestError."""
    if kind in (None, ""):
        return None
    if kind == "json_schema":
        return Constraint.from_schema(str(schema or ""))
    if kind == "regex":
        return Constraint("regex", pattern=str(pattern or ""))
    if kind == "choice":
        return Constraint("choice", choices=tuple(line for line in str(choices or "").splitlines() if line))
    if kind == "json_object":
        return Constraint("json_object")
    raise InvalidRequestError("Choose a constraint from the list.")


def cut_words(constraint: Constraint | None, reason: FinishReason | None, stop: tuple[str, ...] = ()) -> str:
    """What to add under a constrained continuation that did not come to its end; None: it was stopped.

    ``stop`` are its stop strings, which may have ended it.
    """
    if constraint is None or (reason == "stop" and not stop):
        return ""
    if reason == "stop":
        return " · one of your stop strings may have cut it"
    return " · the output was cut, so it may not be complete"


def shown_values(status: ModelStatus) -> tuple[Any, ...]:
    """The kinds to choose from, or why there are none."""
    why = status.unable_to("constraints")
    if why:
        return (gr.Radio(value="", interactive=False, info=why),)
    return (gr.Radio(interactive=True, info="The output always fits, unless it is cut."),)


def layout(status: ModelStatus) -> ConstraintPanel:
    """Place the components."""
    why = status.unable_to("constraints")
    with gr.Accordion("Constrained output", open=False, elem_id="constraint"):
        kind = gr.Radio(
            KINDS,
            value="",
            label="The continuation has to be",
            info=why or "The output always fits, unless it is cut.",
            interactive=not why,
            elem_id="constraint-kind",
        )
        schema = gr.Textbox(
            EXAMPLE_SCHEMA, label="JSON schema", lines=6, max_lines=16, visible=False, elem_id="constraint-schema"
        )
        pattern = gr.Textbox(
            PATTERN,
            label="Regular expression",
            info="Has to match the whole continuation. Rust's syntax: no look-around, no backreferences.",
            visible=False,
            elem_id="constraint-pattern",
        )
        choices = gr.Textbox(
            EXAMPLE_CHOICES, label="Choices", info="One a line.", lines=3, visible=False, elem_id="constraint-choices"
        )
    return ConstraintPanel(kind, schema, pattern, choices)


def wire(panel: ConstraintPanel) -> None:
    """Connect the events: the box of the chosen kind is shown."""

    def choose(kind: str | None) -> tuple[Any, ...]:
        return tuple(gr.Textbox(visible=kind == name) for name in ("json_schema", "regex", "choice"))

    follow([panel.kind.change], choose, [panel.kind], [panel.schema, panel.pattern, panel.choices])
