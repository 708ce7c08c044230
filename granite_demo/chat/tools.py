"""Tools that a model can call: their definitions, the check of a call, and two example tools.

Only the two example tools run here. They use no files and no network. Definitions and arguments are untrusted, so their
size is limited and each check is fast.
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

MAX_TOOLS = 128
"""The limit of OpenAI."""
MAX_TOOLS_BYTES = 128_000
"""The limit for the text of the definitions, and for the arguments of one call."""
MAX_SCHEMA_DEPTH = 32
MAX_NODES = 2000
"""The limit for the parts of the schema of one tool, with all references expanded."""
MAX_STEPS = 15_000
"""The limit for (parts of the schema) x (parts of the arguments), the steps of a check: 0.1 s at 6 µs each."""

TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
REJECTED_KEYWORDS = {
    "$dynamicRef": "references must begin with #/",
    "$recursiveRef": "references must begin with #/",
}
DATA = ("const", "default", "enum", "example", "examples")
"""Keywords whose values are not schemas."""
UNCHECKED_KEYWORDS = (
    *("$id", "$schema", "$anchor", "$dynamicAnchor", "$defs", "definitions"),
    *("uniqueItems", "pattern", "patternProperties", "unevaluatedItems", "unevaluatedProperties"),
)
"""Keywords that are removed for the check: references are expanded, and the others can take too long."""
NAMED = ("properties", "dependentSchemas", "dependentRequired")
"""Keywords whose values have names from the author, which can be equal to keywords."""


EXAMPLE_TOOLS = (
    ToolSpec(
        "calculator",
        "Compute an arithmetic expression.",
        {
            "type": "object",
            "properties": {
                "expression": {
                    "type": "string",
                    "description": "For example 2 * (3 + 4) ** 2 or sqrt(2). "
                    "Use + - * / // % ** and sqrt, sin, cos, log, exp, abs, round, min, max, pi, e.",
                }
            },
            "required": ["expression"],
        },
    ),
    ToolSpec(
        "current_time",
        "Get the current date and time.",
        {
            "type": "object",
            "properties": {"timezone": {"type": "string", "description": "For example Europe/Berlin. Default: UTC."}},
        },
    ),
)
"""The example tools, which run here."""


def to_json(specs: Sequence[ToolSpec]) -> str:
    """Return ``specs`` as the JSON text that ``parse_tools`` reads."""
    return json.dumps([spec.as_function() for spec in specs], indent=2, ensure_ascii=False) if specs else ""


def parse_tools(text: str) -> tuple[ToolSpec, ...]:
    """Parse definitions in the format of OpenAI: a list or a single one, complete or only the function.

    Raises InvalidRequestError.
    """
    # The result is cached, because the page parses at each key press. The copies keep changes out of the cache.
    return tuple(
        replace(spec, parameters=deepcopy(spec.parameters), given=deepcopy(spec.given)) for spec in _parsed(text)
    )


@lru_cache(32)
def _parsed(text: str) -> tuple[ToolSpec, ...]:
    if not text.strip():
        return ()
    value = _read(text, "The tools")
    functions = value if isinstance(value, list) else [value]
    if len(functions) > MAX_TOOLS:
        raise InvalidRequestError(f"There are {len(functions)} tools; the limit is {MAX_TOOLS}.")
    specs = tuple(_spec(number, function) for number, function in enumerate(functions, 1))
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequestError(f"Two tools have the name {name}. Rename one.")
    return specs


def _read(text: str, what: str) -> Any:
    if len(text.encode("utf-8", "replace")) > MAX_TOOLS_BYTES:
        raise InvalidRequestError(f"{what} have more than {MAX_TOOLS_BYTES // 1000} kB.")
    try:
        # The second pass replaces lone surrogates from escape sequences.
        value = json.loads(
            scrub(json.dumps(json.loads(text, parse_constant=_refuse), ensure_ascii=False, allow_nan=False))
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidRequestError(f"{what} are not JSON: {error.msg} ({where}).") from None
    except (ValueError, RecursionError):  # a number with thousands of digits, NaN, a thousand brackets
        raise InvalidRequestError(f"{what} are not JSON that can be read here.") from None
    if _depth(value) > MAX_SCHEMA_DEPTH:
        raise InvalidRequestError(f"{what} have more than {MAX_SCHEMA_DEPTH} levels.")
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
        raise InvalidRequestError(f'Tool {number} is not a function with a "name".')
    name, description = function["name"], function.get("description") or ""
    if not TOOL_NAME.fullmatch(name):
        raise InvalidRequestError(
            f"The name of tool {number} must be 1 to 64 letters, digits, _ or -, not {name!r:.80}."
        )
    if not isinstance(description, str):
        raise InvalidRequestError(f"{name}: the description must be a text.")
    parameters = function.get("parameters")
    if parameters in (None, {}):
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, dict) or parameters.get("type") != "object":
        raise InvalidRequestError(f'{name}: the parameters must be a JSON schema with "type": "object".')
    try:
        _checkable(parameters)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{name}: {error.user_text}") from None
    given = value if function is not value else {"type": "function", "function": function}
    return ToolSpec(name, description, parameters, given)


def _checkable(parameters: Any) -> tuple[Any, int]:
    """Return the schema to check arguments, and the number of its parts. Raises InvalidRequestError."""
    return _expanded(json.dumps(parameters))


@lru_cache(64)
def _expanded(text: str) -> tuple[Any, int]:
    # Cached, because the check of a schema takes longer than the check of arguments with it.
    parameters = json.loads(text)
    if _depth(parameters) > MAX_SCHEMA_DEPTH:
        raise InvalidRequestError(f"the schema has more than {MAX_SCHEMA_DEPTH} levels.")
    try:
        Draft202012Validator.check_schema(parameters)
    except SchemaError as error:
        raise InvalidRequestError(f"the parameters are not a JSON schema: {_plain(error)}") from None
    writer = _Writer(parameters)
    return writer.write(parameters, 0), writer.nodes


class _Writer:
    """Expands the references of a schema, so that a check follows no references, downloads nothing and ends quickly."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self.nodes = 0

    def write(self, schema: Any, depth: int) -> Any:
        self._add(1, depth)
        if isinstance(schema, list):
            return [self.write(part, depth + 1) for part in schema]
        if not isinstance(schema, dict):
            return schema
        for keyword, why in REJECTED_KEYWORDS.items():
            if keyword in schema:
                raise InvalidRequestError(f"{keyword} cannot be used here: {why}.")
        written = {
            key: self._value(key, value, depth) for key, value in schema.items() if key not in UNCHECKED_KEYWORDS
        }
        if "patternProperties" in schema:
            written.pop("additionalProperties", None)  # it speaks of the properties that no pattern matches
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
            raise InvalidRequestError("the schema is too large, or it refers to itself.")

    def _find(self, reference: Any) -> Any:
        if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
            raise InvalidRequestError("references must begin with #/. Nothing is downloaded.")
        found = self._root
        for part in reference.split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        if not isinstance(found, (dict, bool)):
            raise InvalidRequestError(f"the reference {reference!r:.80} does not exist.")
        return found


def check_call(specs: Sequence[ToolSpec], call: ToolCall) -> str:
    """Return the reason why ``call`` is not valid, or an empty text if it is valid."""
    if call.error:
        return call.error
    spec = next((spec for spec in specs if spec.name == call.name), None)
    if spec is None:
        return f"The tool {call.name!r:.80} does not exist."
    try:
        arguments = _read(call.arguments, "The arguments")
        if not isinstance(arguments, dict):
            return "The arguments are not a JSON object."
        schema, parts = _checkable(dict(spec.parameters))
        if parts * _count(arguments) > MAX_STEPS:
            return "There are too many arguments to check."
        error = next(Draft202012Validator(schema).iter_errors(arguments), None)
    except InvalidRequestError as refused:
        return refused.user_text
    except (ArithmeticError, RecursionError):  # for example, a number that is too large for multipleOf
        return "The arguments cannot be checked."
    return "" if error is None else f"The arguments do not match the schema: {_plain(error)}"


def _plain(error: Any) -> str:
    where = ".".join(str(part) for part in error.absolute_path)
    message = error.message if len(error.message) <= 200 else f"{error.message[:199]}…"
    return f"{where}: {message}." if where else f"{message}."


def runs_here(name: str) -> bool:
    """Return whether the tool is one of the example tools, which ``run`` can run."""
    return name in _RUN


def run(call: ToolCall) -> str:
    """Run a call of an example tool. If the call is not valid, the result is the error, for the model."""
    fault = check_call(EXAMPLE_TOOLS, call)
    if fault:
        return f"Error: {fault}"
    try:
        return _RUN[call.name](**_known(call))
    except CalculationError as error:
        return f"Error: {error}"


def _known(call: ToolCall) -> dict[str, Any]:
    # The schema allows other arguments, which a model can invent.
    spec = next(spec for spec in EXAMPLE_TOOLS if spec.name == call.name)
    return {name: value for name, value in json.loads(call.arguments).items() if name in spec.parameters["properties"]}


def _current_time(timezone: str = "UTC") -> str:
    try:
        zone = UTC if timezone.strip().upper() in ("", "UTC") else ZoneInfo(timezone.strip())
    except (LookupError, OSError, ValueError):
        return f"Error: The time zone {timezone!r:.80} does not exist. Use a name such as Europe/Berlin."
    return datetime.now(zone).isoformat(timespec="seconds")


_RUN: dict[str, Callable[..., str]] = {"calculator": calculate, "current_time": _current_time}
