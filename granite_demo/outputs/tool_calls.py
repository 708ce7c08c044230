"""Parses the text of tool calls: JSON objects, JSON lists of them, or XML.

Malformed text becomes a ``ToolCall`` with its ``error`` set. Nothing is raised, because models can write anything.
"""

import json
import re
from collections.abc import Mapping, Sequence
from math import isinf
from typing import Any, NoReturn

from granite_demo.types.messages import ToolCall, ToolSpec

CUT_OFF = "The call was cut off before its end."

# Answers can be long, so every scan is linear. The group is empty if the string has no end.
STRING = re.compile(r'"(?:[^"\\]|\\.)*+("?)', re.DOTALL)
CALL_NAME = re.compile(r'"name"\s*:\s*"([^"\\]*)"|<function=([^<>\n]+)>')
# Values can contain the closing tags. A closing tag counts only if the next tag or the end of the text follows.
TAGS = {
    tag: (re.compile(rf"<{tag}=([^<>\n]+)>"), re.compile(rf"</{tag}>(?=\s*+(?:<{tag}=|\Z))"))
    for tag in ("function", "parameter")
}


class JsonString:
    """Tracks whether the end of JSON text, which arrives in pieces, is inside a string."""

    def __init__(self, is_json: bool = True) -> None:
        """With ``is_json`` false, ``inside`` stays false."""
        self.inside = False
        self._escaped = False
        self._is_json = is_json

    def feed(self, text: str) -> None:
        """Add the next piece."""
        for letter in text if self._is_json else ():
            if self._escaped:
                self._escaped = False
            elif letter == '"':
                self.inside = not self.inside
            elif letter == "\\":
                self._escaped = self.inside
            elif letter == "\n" and self.inside:
                # JSON strings contain no line breaks, so this is not JSON.
                self.inside = self._is_json = False
                return


def read_calls(raw: str, tools: Sequence[ToolSpec] = ()) -> tuple[list[ToolCall], str]:
    """Return the calls in ``raw`` and the text after them.

    XML does not distinguish strings from numbers. A parameter stays a string if its schema in ``tools`` allows one.
    """
    raw = raw.strip()
    try:
        return (_read_xml(raw, tools), "") if raw.startswith("<function=") else _read_json(raw)
    except RecursionError:
        return [unreadable(raw, "The call is nested too deeply.")], ""


def unreadable(raw: str, error: str) -> ToolCall:
    """Return a call with the text ``raw`` as its arguments, its name if ``raw`` shows one, and ``error``."""
    match = CALL_NAME.search(raw)
    return ToolCall((match[1] or match[2] or "").strip() if match else "", raw.strip(), error)


def _read_json(raw: str) -> tuple[list[ToolCall], str]:
    calls: list[ToolCall] = []
    at = 0
    while not calls or raw.startswith(("{", "["), at):
        try:
            value, at = DECODER.raw_decode(raw, at)
        except ValueError as error:
            rest = raw[at:]
            if isinstance(error, json.JSONDecodeError):  # with the position in the text of this call
                error = json.JSONDecodeError(error.msg, rest, error.pos - at)
            why = CUT_OFF if _is_open(rest) else f"The call cannot be read as JSON: {error}."
            return [*calls, unreadable(rest, why)], ""
        while raw[at : at + 1].isspace():
            at += 1
        if value == []:
            break
        calls += [_call(item) for item in (value if isinstance(value, list) else [value])]
    return calls, raw[at:]


def _is_open(raw: str) -> bool:
    """Whether ``raw`` has a string or a bracket without an end."""
    if not raw or not all(match[1] for match in STRING.finditer(raw)):
        return True
    bare = STRING.sub("", raw)
    return bare.count("{") + bare.count("[") > bare.count("}") + bare.count("]")


def _call(item: Any) -> ToolCall:
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(name, str) or not name.strip():
        return ToolCall("", _dumps(item), "The call has no name.")
    arguments = item.get("arguments", item.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = DECODER.decode(arguments)
        except ValueError as error:
            return ToolCall(name, arguments, f"The arguments cannot be read as JSON: {error}.")
    if arguments in (None, ""):
        arguments = {}
    if not isinstance(arguments, dict):
        return ToolCall(name, _dumps(arguments), "The arguments are not a JSON object.")
    return ToolCall(name.strip(), _dumps(arguments))


def _read_xml(raw: str, tools: Sequence[ToolSpec]) -> list[ToolCall]:
    functions, outside = _elements(raw, "function")
    if outside:
        return [unreadable(raw, "The call does not have the form <function=name>...</function>.")]
    calls = []
    for name, body in functions:
        parameters, outside = _elements(body, "parameter")
        if outside:
            calls.append(ToolCall(name, body.strip(), "The call has text outside its parameters."))
        else:
            schemas = next((tool.parameters.get("properties") for tool in tools if tool.name == name), None)
            known = schemas if isinstance(schemas, Mapping) else {}
            values = {key: _value(value, known.get(key)) for key, value in parameters}
            calls.append(ToolCall(name, _dumps(values)))
    return calls


def _elements(text: str, tag: str) -> tuple[list[tuple[str, str]], bool]:
    """Return the (name, body) of each ``<tag=name>body</tag>``, and whether there is text outside them."""
    opening, closing = TAGS[tag]
    found = []
    outside = False
    at = 0
    # If one tag is not closed, no later tag is closed.
    while (begin := opening.search(text, at)) and (end := closing.search(text, begin.end())):
        found.append((begin[1].strip(), text[begin.end() : end.start()]))
        outside = outside or bool(text[at : begin.start()].strip())
        at = end.end()
    return found, outside or bool(text[at:].strip())


def _value(text: str, schema: Any) -> Any:
    text = text.removeprefix("\n").removesuffix("\n")
    wanted = schema.get("type") if isinstance(schema, Mapping) else None
    kinds = wanted if isinstance(wanted, list) else [wanted]
    if "string" in kinds and not (text == "null" and "null" in kinds):
        return text
    try:
        return DECODER.decode(text)
    except ValueError:
        return text


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not valid JSON")


def _finite(text: str) -> float:
    value = float(text)
    return _refuse(text) if isinf(value) else value


# Python's default decoder accepts NaN and infinities, which other JSON parsers reject.
DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
