"""The text of a model's tool calls to ``ToolCall`` values: JSON objects, lists of them, or XML.

What cannot be read becomes a call with its ``error`` set. Nothing is raised, for models write anything.
"""

import json
import re
from math import isinf
from typing import Any, NoReturn

from granite_demo.messages import ToolCall

CUT_OFF = "The call was cut off before its end."

STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
NAME = re.compile(r'"name"\s*:\s*"([^"\\]*)"|<function=([^<>\n]+)>')
# Values may hold the closing tags themselves: only one that the next tag or the end follows counts.
FUNCTION = re.compile(r"<function=([^<>\n]+)>(.*?)</function>(?=\s*(?:<function=|\Z))", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^<>\n]+)>(.*?)</parameter>(?=\s*(?:<parameter=|\Z))", re.DOTALL)


def read_calls(raw: str) -> tuple[list[ToolCall], str]:
    """The calls that ``raw`` holds, and the text that follows them."""
    raw = raw.strip()
    try:
        return (_read_xml(raw), "") if raw.startswith("<function=") else _read_json(raw)
    except RecursionError:
        return [unreadable(raw, "The call is nested too deeply.")], ""


def unreadable(raw: str, error: str) -> ToolCall:
    """A call of which only the text is known, and perhaps the name."""
    match = NAME.search(raw)
    return ToolCall((match[1] or match[2] or "").strip() if match else "", raw.strip(), error)


def _read_json(raw: str) -> tuple[list[ToolCall], str]:
    calls: list[ToolCall] = []
    rest = raw
    while not calls or rest.startswith(("{", "[")):
        try:
            value, end = DECODER.raw_decode(rest)
        except ValueError as error:
            why = CUT_OFF if _is_open(rest) else f"The call cannot be read as JSON: {error}."
            return [*calls, unreadable(rest, why)], ""
        rest = rest[end:].lstrip()
        if value == []:
            break
        calls += [_call(item) for item in (value if isinstance(value, list) else [value])]
    return calls, rest


def _is_open(raw: str) -> bool:
    """Whether a string or a bracket of ``raw`` is never closed."""
    bare = STRING.sub("", raw)
    return not raw or '"' in bare or bare.count("{") + bare.count("[") > bare.count("}") + bare.count("]")


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


def _read_xml(raw: str) -> list[ToolCall]:
    if FUNCTION.sub("", raw).strip():
        return [unreadable(raw, "The call is not one of <function=name> to </function>.")]
    calls = []
    for name, body in FUNCTION.findall(raw):
        if PARAMETER.sub("", body).strip():
            calls.append(ToolCall(name.strip(), body.strip(), "The call has text outside of its parameters."))
        else:
            arguments = {key.strip(): _value(value) for key, value in PARAMETER.findall(body)}
            calls.append(ToolCall(name.strip(), _dumps(arguments)))
    return calls


def _value(text: str) -> Any:
    text = text.removeprefix("\n").removesuffix("\n")
    try:
        return DECODER.decode(text)
    except ValueError:
        return text


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    return _refuse(text) if isinf(value) else value


# Python's own decoder takes NaN and infinities, which other readers of the arguments refuse.
DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
