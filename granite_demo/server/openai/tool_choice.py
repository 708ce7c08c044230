"""OpenAI's ``tool_choice``: the model may call a tool, must call one, or must call the named one.

A forced call is a constraint: the answer is a JSON object with ``name`` and ``arguments``, without the markers that the
family of the model puts around a call. ``chat.ForcedCall`` converts the answer to a call.
"""

from collections.abc import Sequence
from typing import Any

from granite_demo.server.openai.errors import RefusedError, about
from granite_demo.types.constraints import MANY, ONE, Constraint
from granite_demo.types.messages import ToolSpec

ALLOWED_CHOICES = 'tool_choice must be none, auto, required or {"type": "function", "function": {"name": …}}.'
WHERE = ("tool_choice",)


def must_call(choice: Any, tools: Sequence[ToolSpec]) -> tuple[ToolSpec, ...]:
    """The tools of which ``choice`` forces one; empty where the model decides. Raises RefusedError."""
    if choice in (None, "none", "auto"):
        return ()
    name = _name_of(choice)
    found = tuple(tool for tool in tools if name in (None, tool.name))
    if not found:
        raise RefusedError("No tool of this request matches tool_choice.", WHERE)
    return found


def _name_of(choice: Any) -> str | None:
    if choice == "required":
        return None
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise RefusedError(ALLOWED_CHOICES, WHERE)
    return name


def call_constraint(tools: Sequence[ToolSpec]) -> Constraint:
    """The constraint of an answer that calls one of ``tools``. Raises RefusedError for unusable parameters."""
    with about(*WHERE):
        return Constraint.from_schema({"anyOf": [_schema(tool, number) for number, tool in enumerate(tools)]})


def _schema(tool: ToolSpec, number: int) -> dict[str, Any]:
    # These two make a document of the parameters, which are now a part of another one.
    parameters = {name: value for name, value in tool.parameters.items() if name not in ("$schema", "$id")}
    arguments = _moved(parameters, f"#/anyOf/{number}/properties/arguments")
    properties = {"name": {"const": tool.name}, "arguments": arguments}
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _moved(schema: Any, place: str) -> Any:
    """``schema`` with its references starting at ``place`` instead of the root."""
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
