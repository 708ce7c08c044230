"""Tools that a model may call: their definitions, whether a call fits them, and two examples that run here.

Only the two examples ever run, and neither touches files or the network. Definitions and arguments come from strangers:
both are bounded, so that no check takes long. Knows no page.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from jsonschema import Draft202012Validator, SchemaError

from granite_demo.chat.calculator import CalculationError, calculate
from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import ToolCall, ToolSpec, scrub

MAX_TOOLS = 16
MAX_TOOLS_BYTES = 32_000
"""Of the definitions' text, and of one call's arguments."""
MAX_SCHEMA_DEPTH = 32
MAX_NODES = 2000
"""Parts of one tool's schema, with each reference written out."""
MAX_STEPS = 15_000
"""Parts of the schema times parts of the arguments, which is the longest that a check can take: at 6 µs each, 0.1 s."""

TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
REFUSED = {
    "pattern": "a regular expression can take for ever",
    "patternProperties": "a regular expression can take for ever",
    "unevaluatedItems": "it can take for ever",
    "unevaluatedProperties": "it can take for ever",
    "$dynamicRef": "references must begin with #/",
    "$recursiveRef": "references must begin with #/",
}
DATA = ("const", "default", "enum", "example", "examples")
"""Keywords whose values are no schemas."""
UNCHECKED_KEYWORDS = ("$id", "$schema", "$anchor", "$dynamicAnchor", "$defs", "definitions", "uniqueItems")
"""Left out of the schema that arguments are checked with: references are written out, and uniqueItems is slow."""
NAMED = ("properties", "dependentSchemas", "dependentRequired")
"""Keywords whose values have names of the author's own, which may spell keywords."""


EXAMPLE_TOOLS = (
    ToolSpec(
        "calculator",
        "Work out an arithmetic expression.",
        {
            "type": "object",
            "properties": {
                "expression": {
                    "type": "string",
                    "description": "Such as 2 * (3 + 4) ** 2 or sqrt(2). "
                    "There are + - * / // % ** and sqrt, sin, cos, log, exp, abs, round, min, max, pi, e.",
                }
            },
            "required": ["expression"],
        },
    ),
    ToolSpec(
        "current_time",
        "Tell the date and time of now.",
        {
            "type": "object",
            "properties": {"timezone": {"type": "string", "description": "Such as Europe/Berlin. The default is UTC."}},
        },
    ),
)
"""The tools that run here."""


def to_json(specs: Sequence[ToolSpec]) -> str:
    """The text that ``parse_tools`` reads ``specs`` from."""
    return json.dumps([spec.as_function() for spec in specs], indent=2, ensure_ascii=False) if specs else ""


def parse_tools(text: str) -> tuple[ToolSpec, ...]:
    """Read definitions as OpenAI's API takes them: a list or one, whole or only the function.

    Raises InvalidRequestError.
    """
    # The page asks at each key, and schemas, which are dictionaries, must not be shared with whoever changes one.
    return tuple(replace(spec, parameters=deepcopy(spec.parameters)) for spec in _parsed(text))


@lru_cache(32)
def _parsed(text: str) -> tuple[ToolSpec, ...]:
    if not text.strip():
        return ()
    value = _read(text, "The tools")
    functions = value if isinstance(value, list) else [value]
    if len(functions) > MAX_TOOLS:
        raise InvalidRequestError(f"There can be {MAX_TOOLS} tools at most, not {len(functions)}.")
    specs = tuple(_spec(number, function) for number, function in enumerate(functions, 1))
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequestError(f"There are two tools with the name {name}. Rename one.")
    return specs


def _read(text: str, what: str) -> Any:
    if len(text.encode("utf-8", "replace")) > MAX_TOOLS_BYTES:
        raise InvalidRequestError(f"{what} have more than {MAX_TOOLS_BYTES // 1000} kB.")
    try:
        # Lone surrogates, which may hide in escapes, are replaced in the second reading.
        value = json.loads(
            scrub(json.dumps(json.loads(text, parse_constant=_refuse), ensure_ascii=False, allow_nan=False))
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidRequestError(f"{what} are not JSON: {error.msg} ({where}).") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, NaN, a thousand brackets
        raise InvalidRequestError(f"{what} are not JSON that can be read here.") from None
    if _depth(value) > MAX_SCHEMA_DEPTH:
        raise InvalidRequestError(f"{what} are nested more than {MAX_SCHEMA_DEPTH} deep.")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        level = [part for item in level for part in _parts(item)]
        depth += 1
    return depth


def _count(value: Any) -> int:
    return 1 + sum(_count(part) for part in _parts(value))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        yield from value.values() if isinstance(value, dict) else value


def _spec(number: int, value: Any) -> ToolSpec:
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else value
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequestError(f'Tool {number} is no function with a "name".')
    name, description = function["name"], function.get("description", "")
    if not TOOL_NAME.fullmatch(name):
        raise InvalidRequestError(
            f"The name of tool {number} must be 1 to 64 letters, digits, _ or -, not {name!r:.80}."
        )
    if not isinstance(description, str):
        raise InvalidRequestError(f"{name}: the description must be text.")
    parameters = function.get("parameters", {"type": "object", "properties": {}})
    if not isinstance(parameters, dict) or parameters.get("type") != "object":
        raise InvalidRequestError(f'{name}: the parameters must be a JSON schema with "type": "object".')
    try:
        _written_out(parameters)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{name}: {error.user_text}") from None
    return ToolSpec(name, description, parameters)


def _written_out(parameters: Any) -> tuple[Any, int]:
    """The schema to check arguments with, and how many parts it has. Raises InvalidRequestError for what is refused."""
    return _written(json.dumps(parameters))


@lru_cache(64)
def _written(text: str) -> tuple[Any, int]:
    # Checking a schema takes longer than checking arguments with it.
    parameters = json.loads(text)
    if _depth(parameters) > MAX_SCHEMA_DEPTH:
        raise InvalidRequestError("the schema is nested too deeply.")
    try:
        Draft202012Validator.check_schema(parameters)
    except SchemaError as error:
        raise InvalidRequestError(f"the parameters are no JSON schema: {_plain(error)}") from None
    writer = _Writer(parameters)
    return writer.write(parameters, 0), writer.nodes


class _Writer:
    """Writes out a schema's references, so that checking with it follows none, fetches nothing and soon ends."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self.nodes = 0

    def write(self, schema: Any, depth: int) -> Any:
        self._add(1, depth)
        if isinstance(schema, list):
            return [self.write(part, depth + 1) for part in schema]
        if not isinstance(schema, dict):
            return schema
        for keyword, why in REFUSED.items():
            if keyword in schema:
                raise InvalidRequestError(f"{keyword} cannot be used here: {why}.")
        written = {
            key: self._value(key, value, depth) for key, value in schema.items() if key not in UNCHECKED_KEYWORDS
        }
        if "$ref" not in written:
            return written
        return {"allOf": [self.write(self._find(written.pop("$ref")), depth + 1), written]}

    def _value(self, key: str, value: Any, depth: int) -> Any:
        if key == "$ref":
            return value
        if key in DATA:
            self._add(_count(value), depth)
            return value
        if key in NAMED and isinstance(value, dict):
            return {name: self.write(part, depth + 1) for name, part in value.items()}
        return self.write(value, depth + 1)

    def _add(self, nodes: int, depth: int) -> None:
        self.nodes += nodes
        if depth > MAX_SCHEMA_DEPTH or self.nodes > MAX_NODES:
            raise InvalidRequestError("the schema is too large, or refers to itself.")

    def _find(self, reference: Any) -> Any:
        if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
            raise InvalidRequestError("references must begin with #/: nothing is fetched from elsewhere.")
        found = self._root
        for part in reference.split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        if not isinstance(found, (dict, bool)):
            raise InvalidRequestError(f"there is nothing at the reference {reference!r:.80}.")
        return found


def check_call(specs: Sequence[ToolSpec], call: ToolCall) -> str:
    """Why ``call`` is not fit to be carried out, in plain words; empty if it is."""
    if call.error:
        return call.error
    spec = next((spec for spec in specs if spec.name == call.name), None)
    if spec is None:
        return f"There is no tool with the name {call.name!r:.80}."
    try:
        arguments = _read(call.arguments, "The arguments")
        if not isinstance(arguments, dict):
            return "The arguments are no JSON object."
        schema, parts = _written_out(dict(spec.parameters))
        if parts * _count(arguments) > MAX_STEPS:
            return "The arguments are too many to be checked."
        error = next(Draft202012Validator(schema).iter_errors(arguments), None)
    except InvalidRequestError as refused:
        return refused.user_text
    except (ArithmeticError, RecursionError):  # such as a number too large for multipleOf
        return "The arguments cannot be checked."
    return "" if error is None else f"The arguments do not fit: {_plain(error)}"


def _plain(error: Any) -> str:
    where = ".".join(str(part) for part in error.absolute_path)
    message = error.message if len(error.message) <= 200 else f"{error.message[:199]}…"
    return f"{where}: {message}." if where else f"{message}."


def runs_here(name: str) -> bool:
    """Whether the tool is one of the examples, which ``run`` carries out."""
    return name in _RUN


def run(call: ToolCall) -> str:
    """Carry out a call of one of the examples. What is wrong with it is the result, for the model to read."""
    fault = check_call(EXAMPLE_TOOLS, call)
    if fault:
        return f"Error: {fault}"
    try:
        return _RUN[call.name](**_known(call))
    except CalculationError as error:
        return f"Error: {error}"


def _known(call: ToolCall) -> dict[str, Any]:
    # A model may make up further arguments, which the schema allows.
    spec = next(spec for spec in EXAMPLE_TOOLS if spec.name == call.name)
    return {name: value for name, value in json.loads(call.arguments).items() if name in spec.parameters["properties"]}


def _current_time(timezone: str = "UTC") -> str:
    try:
        zone = UTC if timezone.strip().upper() in ("", "UTC") else ZoneInfo(timezone.strip())
    except (LookupError, OSError, ValueError):
        return f"Error: There is no time zone {timezone!r:.80}. They look like Europe/Berlin."
    return datetime.now(zone).isoformat(timespec="seconds")


_RUN: dict[str, Callable[..., str]] = {"calculator": calculate, "current_time": _current_time}
