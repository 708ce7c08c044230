"""Reads the text of tool calls: JSON, Python and XML, also with the mistakes that models make.

Text that cannot be read becomes a ``ToolCall`` with its ``error`` set. Nothing is raised, because models can write
anything.
"""

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isinf
from typing import Any, Literal, NoReturn

from granite_demo.types.messages import ToolCall, ToolSpec

CUT_OFF = "The call was cut off before its end."
MAX_PYTHON = 8000
"""The maximum length of a call in Python, in characters."""

# Answers can be long, so every scan is linear. The group is empty if the string has no end.
STRING = re.compile(r'"(?:[^"\\]|\\.)*+("?)', re.DOTALL)
CALL_NAME = re.compile(r'"name"\s*:\s*"([^"\\]*)"|<function=([^<>\n]+)>')
BETWEEN = re.compile(r"[\s,]*+")
ARGUMENTS = ("arguments", "parameters", "args", "input")
"""The names of the arguments in a call. The first one is that of OpenAI and of Granite."""
LITERALS = {"true": True, "false": False, "null": None, "none": None}


def read_calls(raw: str, tools: Sequence[ToolSpec] = (), *, repair: bool = False) -> tuple[list[ToolCall], str]:
    """Return the calls in ``raw``, which is JSON or Python, and the text after them.

    With ``repair``, brackets that are missing at the end are added: only for a call that the model itself ended.
    """
    raw = raw.strip()
    calls: list[ToolCall] = []
    at = 0
    try:
        while at < len(raw) and (not at or raw.startswith(("{", "["), at)):
            value, end = _value_at(raw, at, repair)
            calls += [call for item in (value if isinstance(value, list) else [value]) for call in _calls_of(item)]
            at = BETWEEN.match(raw, end).end()  # type: ignore[union-attr]  # it matches the empty text, too
    except (ValueError, RecursionError) as error:
        rest = raw[at:]
        if (python := read_python(rest, tools)) is not None:
            return [*calls, *python], ""
        if isinstance(error, json.JSONDecodeError):  # with the position in the text of this call
            error = json.JSONDecodeError(error.msg, rest, error.pos - at)
        why = f"The call cannot be read as JSON: {error}."
        if isinstance(error, RecursionError):
            why = "The call is nested too deeply."
        elif _missing(rest) != "":
            why = CUT_OFF
        return [*calls, unreadable(rest, why)], ""
    return calls if raw else [unreadable(raw, CUT_OFF)], raw[at:]


def unreadable(raw: str, error: str) -> ToolCall:
    """Return a call with the text ``raw`` as its arguments, its name if ``raw`` shows one, and ``error``."""
    match = CALL_NAME.search(raw)
    return ToolCall(_unquoted(match[1] or match[2] or "") if match else "", raw.strip(), error)


def _value_at(raw: str, at: int, repair: bool) -> tuple[Any, int]:
    try:
        return DECODER.raw_decode(raw, at)
    except json.JSONDecodeError:
        missing = _missing(raw[at:]) if repair else None
        if not missing:
            raise
        value, _ = DECODER.raw_decode(raw[at:].rstrip().rstrip(",") + missing)
        return value, len(raw)


def _missing(raw: str) -> str | None:
    """Return the brackets that close ``raw``; None if a string in it has no end, or if the brackets do not match."""
    if not raw or not all(match[1] for match in STRING.finditer(raw)):
        return None
    expected: list[str] = []
    for bracket in re.findall(r"[][{}]", STRING.sub("", raw)):
        if bracket in "{[":
            expected.append("}" if bracket == "{" else "]")
        elif not expected or expected.pop() != bracket:
            return ""
    return "".join(reversed(expected))


def _calls_of(item: Any) -> list[ToolCall]:
    """Return the calls in one value of JSON: one call, or several in OpenAI's ``tool_calls``."""
    inner = item.get("tool_calls") if isinstance(item, dict) else None
    return [_call(part) for part in inner] if isinstance(inner, list) else [_call(item)]


def _call(item: Any) -> ToolCall:
    fields = item if isinstance(item, dict) else {}
    function = fields.get("function")
    if isinstance(function, dict):  # the nesting of OpenAI
        fields, function = function, None
    name = fields.get("name", function)
    if not isinstance(name, str) or not name.strip():
        return ToolCall("", _dumps(item), "The call has no name.")
    name = name.strip()
    arguments = next((fields[key] for key in ARGUMENTS if key in fields), None)
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = DECODER.decode(arguments)
        except ValueError as error:
            return ToolCall(name, arguments, f"The arguments cannot be read as JSON: {error}.")
    if arguments in (None, ""):
        arguments = {}
    if not isinstance(arguments, dict):
        return ToolCall(name, _dumps(arguments), "The arguments are not a JSON object.")
    return ToolCall(name, _dumps(arguments))


def read_python(raw: str, tools: Sequence[ToolSpec] = ()) -> list[ToolCall] | None:
    """Return the calls that ``raw`` writes in Python: ``name(key=value)``, a list of them, or a dictionary.

    Values are literals, also those of JSON. Arguments without a key get those of the schema, in its order. None: it is
    something else. Nothing is run.
    """
    if len(raw) > MAX_PYTHON:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            node = ast.parse(raw.strip(), mode="eval").body
        nodes = node.elts if isinstance(node, ast.List | ast.Tuple) else [node]
        return [_python_call(item, tools) if isinstance(item, ast.Call) else _call(_dict(item)) for item in nodes]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _python_call(node: ast.Call, tools: Sequence[ToolSpec]) -> ToolCall:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    keys = list(_properties(tools, name)) if node.args else []
    if not name or len(keys) < len(node.args):
        _refuse(ast.dump(node.func)[:80])
    given = dict(zip(keys, map(_literal, node.args), strict=False))
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in given:
            _refuse(str(keyword.arg))
        given[keyword.arg] = _literal(keyword.value)
    return ToolCall(name, _dumps(given))


def _dict(node: ast.expr) -> Any:
    return _literal(node) if isinstance(node, ast.Dict) else _refuse(type(node).__name__)


def _literal(node: ast.expr | None) -> Any:
    """Return the value of a literal. Raises ValueError for other expressions and for values that JSON does not have."""
    match node:
        case ast.Constant(value=str() | bool() | int() | None):
            return node.value
        case ast.Constant(value=float() as number):
            return _refuse("Infinity") if isinf(number) else number
        case ast.Name(id="true" | "false" | "null"):
            return LITERALS[node.id]
        case ast.List() | ast.Tuple():
            return [_literal(item) for item in node.elts]
        case ast.Dict():
            pairs = [(_literal(key), _literal(value)) for key, value in zip(node.keys, node.values, strict=True)]
            return {key if isinstance(key, str) else json.dumps(key): value for key, value in pairs}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
            return -_literal(node.operand)
    return _refuse(type(node).__name__)


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of an XML call: its kind, its name, and its place in the text of the call."""

    kind: Literal["function", "parameter", "close"]
    name: str
    start: int
    end: int


def read_xml(raw: str, tags: Sequence[Tag], tools: Sequence[ToolSpec] = ()) -> list[ToolCall]:
    """Return the calls in ``raw``. ``tags`` are those that structure it; others are part of a value.

    A value ends at the next tag, so its own closing tag can be missing. XML does not distinguish strings from numbers:
    the schema in ``tools`` decides.
    """
    calls: list[ToolCall] = []
    starts = [index for index, tag in enumerate(tags) if tag.kind == "function"]
    for start, stop in zip(starts, [*starts[1:], len(tags)], strict=True):
        part = tags[start:stop]
        ends = [tag.start for tag in part[1:]] + [tags[stop].start if stop < len(tags) else len(raw)]
        calls.append(_xml_call(raw, part, ends, tools))
    return calls


def _xml_call(raw: str, tags: Sequence[Tag], ends: Sequence[int], tools: Sequence[ToolSpec]) -> ToolCall:
    name = tags[0].name
    texts = [raw[tag.end : end] for tag, end in zip(tags, ends, strict=True)]
    schemas = _properties(tools, name)
    given = {
        tag.name: _typed(text, schemas.get(tag.name), tools, name)
        for tag, text in zip(tags, texts, strict=True)
        if tag.kind == "parameter"
    }
    outside = "".join(text for tag, text in zip(tags, texts, strict=True) if tag.kind != "parameter").strip()
    if not outside:
        return ToolCall(name, _dumps(given))
    if not given:
        try:
            if isinstance(arguments := DECODER.decode(outside), dict):
                return ToolCall(name, _dumps(arguments))
        except (ValueError, RecursionError):
            pass
    return ToolCall(name, raw[tags[0].end : tags[-1].start if tags[-1].kind == "close" else ends[-1]].strip(), OUTSIDE)


OUTSIDE = "The call has text outside its parameters."


def _properties(tools: Sequence[ToolSpec], name: str) -> Mapping[str, Any]:
    found = next((tool.parameters.get("properties") for tool in tools if tool.name == name), None)
    return found if isinstance(found, Mapping) else {}


def _typed(text: str, schema: Any, tools: Sequence[ToolSpec], name: str) -> Any:
    text = text.removeprefix("\n").removesuffix("\n")
    root = next((tool.parameters for tool in tools if tool.name == name), {})
    kinds, values = _kinds(schema, root)
    if text in values:
        return text
    word = text.strip().lower()
    if "null" in kinds and word in ("null", "none"):
        return None
    if values:
        value = _decoded(text, kinds | set(map(_kind_of, values)))
        return next((known for known in values if known == value and type(known) is type(value)), text)
    if "string" in kinds:
        return text
    if "boolean" in kinds and word in ("true", "false"):
        return LITERALS[word]
    return _decoded(text, kinds)


def _decoded(text: str, kinds: set[str]) -> Any:
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError):
        if kinds.isdisjoint(("boolean", "null", "array", "object")):
            return text
    if (word := text.strip()) in ("True", "False", "None"):
        return LITERALS[word.lower()]
    try:
        return _literal(ast.parse(text.strip(), mode="eval").body) if len(text) <= MAX_PYTHON else text
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text


MAX_PARTS = 100
"""The maximum number of schemas that are read to find the type of one value."""


def _kinds(schema: Any, root: Mapping[str, Any]) -> tuple[set[str], list[Any]]:
    """Return the types that ``schema`` allows, and its values if it lists them. ``root`` has what ``$ref`` names."""
    kinds: set[str] = set()
    values: list[Any] = []
    queue = [schema]
    for count, part in enumerate(queue):
        if not isinstance(part, Mapping) or count > MAX_PARTS:
            continue
        kind = part.get("type")
        kinds.update(kind if isinstance(kind, list) else [kind] if isinstance(kind, str) else [])
        listed = part.get("enum", [part["const"]] if "const" in part else [])
        values += listed if isinstance(listed, list) else []
        for keyword in ("anyOf", "oneOf", "allOf"):
            queue += found if isinstance(found := part.get(keyword), list) else []
        if isinstance(reference := part.get("$ref"), str) and reference.startswith("#/"):
            target: Any = root
            for step in reference[2:].split("/"):
                target = target.get(step) if isinstance(target, Mapping) else None
            queue.append(target)
    if values and kinds - {_kind_of(value) for value in values} - {"number", "null"}:
        values = []  # one branch lists values, and another one allows more
    return kinds, values


def _kind_of(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def _unquoted(name: str) -> str:
    return name.strip().strip("\"'").strip()


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not valid JSON")


def _finite(text: str) -> float:
    value = float(text)
    return _refuse(text) if isinf(value) else value


# Python's default decoder accepts NaN and infinities, which other JSON parsers reject. Models write raw line breaks in
# strings, which it accepts if it is not strict.
DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite, strict=False)
