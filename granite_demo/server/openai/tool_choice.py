"""``tool_choice`` as OpenAI has it: whether the model may call a tool, must call one, or must call a certain one.

A call that must come is a constraint: the answer is JSON of an object with ``name`` and ``arguments``, whatever marks
the model's family puts round its calls otherwise. ``chat_choices.ForcedCall`` tells it as a call.
"""

from collections.abc import Sequence
from typing import Any

from granite_demo.server.openai.errors import RefusedError, about
from granite_demo.types.constraints import MANY, ONE, Constraint
from granite_demo.types.messages import ToolSpec

CHOICES = 'tool_choice must be none, auto, required or {"type": "function", "function": {"name": …}}.'
WHERE = ("tool_choice",)


def must_call(choice: Any, tools: Sequence[ToolSpec]) -> tuple[ToolSpec, ...]:
    """Those of ``tools`` one of which ``choice`` wants called; none where it leaves that to the model."""
    if choice in (None, "none", "auto"):
        return ()
    name = _name_of(choice)
    found = tuple(tool for tool in tools if name in (None, tool.name))
    if not found:
        raise RefusedError("tool_choice names no tool of this request.", WHERE)
    return found


def _name_of(choice: Any) -> str | None:
    if choice == "required":
        return None
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise RefusedError(CHOICES, WHERE)
    return name


def call_constraint(tools: Sequence[ToolSpec]) -> Constraint:
    """What an answer has to be to call one of ``tools``. Raises RefusedError for parameters that cannot be kept to."""
    with about(*WHERE):
        return Constraint.from_schema({"anyOf": [_schema(tool, number) for number, tool in enumerate(tools)]})


def _schema(tool: ToolSpec, number: int) -> dict[str, Any]:
    # These two name a document of its own, which the parameters are no more.
    parameters = {name: value for name, value in tool.parameters.items() if name not in ("$schema", "$id")}
    arguments = _moved(parameters, f"#/anyOf/{number}/properties/arguments")
    properties = {"name": {"const": tool.name}, "arguments": arguments}
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _moved(schema: Any, place: str) -> Any:
    """``schema`` whose references start at ``place`` rather than at the root."""
    if not isinstance(schema, dict):
        return schema
    moved = dict(schema)
    for name, value in schema.items():
        if name == "$ref" and isinstance(value, str) and value.startswith("#"):
            moved[name] = place + value[1:]
        elif name in ONE:
            moved[name] = _moved(value, place)
        elif name in MANY and isinstance(value, dict):
            moved[name] = {key: _moved(part, place) for key, part in value.items()}
        elif name in MANY and isinstance(value, list):
            moved[name] = [_moved(part, place) for part in value]
    return moved
