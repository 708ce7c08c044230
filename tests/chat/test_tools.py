"""Tests for tool definitions, the check of calls, and the two example tools."""

import json
import time
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from granite_demo.chat import tools
from granite_demo.chat.tools import EXAMPLE_TOOLS, check_call, parse_tools, run, runs_here, to_json
from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import ToolCall, ToolSpec

BARE = {"name": "weather", "description": "Look out.", "parameters": {"type": "object", "properties": {}}}


def spec(**parameters: Any) -> ToolSpec:
    return ToolSpec("t", "", {"type": "object", **parameters})


def defined(**parameters: Any) -> str:
    return to_json([spec(**parameters)])


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_has_no_tools(text: str) -> None:
    assert parse_tools(text) == ()
    assert to_json(()) == ""


@pytest.mark.parametrize("value", [BARE, [BARE], {"type": "function", "function": BARE}])
def test_each_format_of_a_tool(value: Any) -> None:
    assert parse_tools(json.dumps(value)) == (ToolSpec("weather", "Look out.", BARE["parameters"]),)  # type: ignore[arg-type]


def test_a_name_is_enough() -> None:
    (only,) = parse_tools('{"name": "ping"}')
    assert (only.description, only.parameters) == ("", {"type": "object", "properties": {}})


def test_the_example_tools_can_be_parsed_from_their_json() -> None:
    assert parse_tools(to_json(EXAMPLE_TOOLS)) == EXAMPLE_TOOLS
    assert [runs_here(name) for name in ("calculator", "current_time", "weather")] == [True, True, False]


def test_a_lone_surrogate_is_replaced() -> None:
    (only,) = parse_tools('{"name": "a", "description": "\\ud800"}')
    assert only.description == "\ufffd"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[\n  {"name": }]', r"line 2, column 12"),
        ("[NaN]", "not JSON"),
        ('{"name": "a", "description": 1e999}', "not JSON"),
        ("9" * 5000, "not JSON"),
        ("[" * 20_000, "not JSON"),
        ("[" * 40 + "]" * 40, "more than 32 levels"),
        (json.dumps("x" * 129_000), "more than 128 kB"),
        ("[1]", "Tool 1"),
        ("3", "Tool 1"),
        ('{"name": 3}', "Tool 1"),
        ('{"type": "function"}', "Tool 1"),
        ('{"name": "a b"}', "letters, digits"),
        ('{"name": "a\\n"}', "letters, digits"),
        ('{"name": ""}', "letters, digits"),
        (json.dumps({"name": "a" * 65}), "letters, digits"),
        ('{"name": "a", "description": 1}', "must be a text"),
        ('{"name": "a", "parameters": []}', '"type": "object"'),
        ('{"name": "a", "parameters": {"type": "string"}}', '"type": "object"'),
        ('[{"name": "a"}, {"name": "a"}]', "Two tools have the name a"),
        (json.dumps([{"name": f"a{number}"} for number in range(129)]), "129 tools; the limit is 128"),
        (defined(properties={"x": {"type": "text"}}), "t: the parameters are not a JSON schema: properties.x.type"),
        (defined(properties=[]), "not a JSON schema"),
        (defined(properties={"x": {"$ref": "http://127.0.0.1/schema"}}), "Nothing is downloaded"),
        (defined(properties={"x": {"$ref": "#/$defs/no"}}), "'#/\\$defs/no' does not exist"),
        (defined(properties={"x": {"$ref": "#"}}), "refers to itself"),
        (json.dumps({"name": "t", "parameters": {"type": "object", "enum": [*range(2100)]}}), "too large"),
    ],
)
def test_mistakes_in_definitions_raise(text: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        parse_tools(text)


def test_a_property_can_have_the_name_of_a_keyword() -> None:
    grep = spec(properties={"pattern": {"type": "string"}, "$ref": {"type": "string"}}, required=["pattern"])
    assert parse_tools(to_json([grep])) == (grep,)
    assert check_call([grep], ToolCall("t", '{"pattern": "(a+)+$"}')) == ""
    assert "pattern" in check_call([grep], ToolCall("t", "{}"))


def test_data_is_not_parsed_as_a_schema() -> None:
    text = defined(properties={"x": {"enum": [{"pattern": "a"}], "default": {"$ref": "http://x"}}})
    assert len(parse_tools(text)) == 1


def test_schemas_that_double_with_each_reference_raise_quickly() -> None:
    levels = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    start = time.perf_counter()
    with pytest.raises(InvalidRequestError, match="too large"):
        parse_tools(defined(**{"$defs": {**levels, "d40": {}}, "properties": {"x": {"$ref": "#/$defs/d0"}}}))
    assert time.perf_counter() - start < 2


def test_references_inside_are_followed() -> None:
    definitions = {"point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}}
    (points,) = parse_tools(defined(**{"$defs": definitions, "properties": {"at": {"$ref": "#/$defs/point"}}}))
    assert check_call([points], ToolCall("t", '{"at": {"x": 1}}')) == ""
    fault = check_call([points], ToolCall("t", '{"at": {"x": "1"}}'))
    assert fault.startswith("The arguments do not match the schema: at.x: '1'")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (ToolCall("calculator", '{"expression": "1"}'), ""),
        (ToolCall("calculator", '{"expression": 1}'), "the schema: expression: 1 is not of type 'string'"),
        (ToolCall("calculator", "{}"), "'expression' is a required property"),
        (ToolCall("calculator", "[]"), "not a JSON object"),
        (ToolCall("calculator", ""), "not JSON"),
        (ToolCall("calculator", '{"expression": "1"'), "not JSON"),
        (ToolCall("calculator", '{"a": ' + "[" * 5000), "not JSON"),
        (ToolCall("calculator", json.dumps({"expression": "x" * 130_000})), "more than 128 kB"),
        (ToolCall("weather", "{}"), "The tool 'weather' does not exist"),
        (ToolCall("", "gibberish", error="It cannot be read."), "It cannot be read."),
    ],
)
def test_a_call_is_checked(call: ToolCall, words: str) -> None:
    found = check_call(EXAMPLE_TOOLS, call)
    assert words in found
    assert bool(words) == bool(found)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"x": {"items": {"anyOf": [{"const": number} for number in range(900)]}}}},
        {"properties": {"x": {"uniqueItems": True}}},
        {"properties": {"x": {"items": {"multipleOf": 1e-300}}}},
    ],
)
def test_checks_of_hostile_schemas_are_fast(schema: dict[str, Any]) -> None:
    items = [*range(3000), *({str(number): number} for number in range(900)), 10**400]
    start = time.perf_counter()
    check_call([spec(**schema)], ToolCall("t", json.dumps({"x": items})))
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(("kinds", "count"), [(48, 95), (48, 1000), (4, 800)])
def test_the_slowest_check_is_fast(kinds: int, count: int) -> None:
    # The slowest case: each item is compared with each kind. It takes 0.1 s on a busy core.
    items = {"not": {"anyOf": [{"type": "string", "const": str(number)} for number in range(kinds)]}}
    specs = parse_tools(defined(properties={"x": {"items": items}}))
    start = time.thread_time()
    fault = check_call(specs, ToolCall("t", json.dumps({"x": [1] * count})))
    assert time.thread_time() - start < 0.4
    assert fault == ("There are too many arguments to check." if count == 1000 else "")


def test_definitions_are_cached_and_the_copies_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    text = defined(properties={"only": {"type": "string"}}, title="read once")
    (first,) = parse_tools(text)
    monkeypatch.setattr(tools, "_read", lambda *_: pytest.fail("read again"))
    first.parameters["properties"]["only"]["type"] = "number"
    assert parse_tools(text)[0].parameters["properties"] == {"only": {"type": "string"}}


def test_an_unchecked_definition_does_not_crash() -> None:
    for parameters in ({"type": "nonsense"}, {"properties": 3}, {"$ref": 3}, {"$ref": "http://127.0.0.1/"}):
        assert check_call([ToolSpec("t", "", parameters)], ToolCall("t", "{}"))


def test_the_calculator_runs() -> None:
    assert run(ToolCall("calculator", '{"expression": "6 * 7", "unit": "m"}')) == "42"
    assert run(ToolCall("calculator", '{"expression": "1 / 0"}')) == "Error: Division by zero."
    assert run(ToolCall("calculator", "{}")).startswith("Error: The arguments do not match")
    assert run(ToolCall("weather", "{}")).startswith("Error: The tool 'weather' does not exist")


def test_the_current_time() -> None:
    berlin = datetime.fromisoformat(run(ToolCall("current_time", '{"timezone": "Europe/Berlin"}')))
    assert abs((datetime.now(berlin.tzinfo) - berlin).total_seconds()) < 60
    assert berlin.utcoffset() in (timedelta(hours=1), timedelta(hours=2))
    assert run(ToolCall("current_time", "{}")).endswith("+00:00")


@pytest.mark.parametrize("zone", ["Nowhere/Town", "../../etc/passwd", "America", "/etc/passwd", "a\0b", "x" * 9000])
def test_an_unknown_time_zone_is_an_error(zone: str) -> None:
    assert run(ToolCall("current_time", json.dumps({"timezone": zone}))).startswith("Error: The time zone")


@settings(deadline=None)
@given(st.text(max_size=40), st.text(max_size=200))
def test_no_call_crashes(name: str, arguments: str) -> None:
    for called in (name, "calculator", "current_time"):
        assert run(ToolCall(called, arguments))


SOME_KEYS = ("name", "type", "function", "parameters", "properties", "$ref", "allOf", "items", "enum", "required")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(SOME_KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON)
def test_any_json_is_parsed_or_raises(value: Any) -> None:
    for written in (value, {"name": "a", "parameters": {"type": "object", "properties": {"x": value}}}):
        with suppress(InvalidRequestError):
            assert check_call(parse_tools(json.dumps(written)), ToolCall("a", '{"x": 1}')) is not None


def test_a_reference_that_is_not_a_text_raises() -> None:
    schema = {"type": "object", "properties": {"x": {"description": "a", "$ref": None}}}
    with pytest.raises(InvalidRequestError):
        parse_tools(json.dumps([{"name": "a", "parameters": schema}]))


def test_a_definition_is_kept_as_it_was_given() -> None:
    given = {"type": "function", "function": {"name": "f", "return": {"type": "string"}, "strict": False}, "x-own": 1}
    [tool] = parse_tools(json.dumps([given]))
    assert tool.as_function() == given
    assert (tool.description, tool.parameters) == ("", {"type": "object", "properties": {}})
    [bare] = parse_tools('{"name": "f", "parameters": {}}')
    assert bare.as_function() == {"type": "function", "function": {"name": "f", "parameters": {}}}


def test_what_takes_too_long_to_check_is_not_checked() -> None:
    slow = {"type": "object", "patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}
    [tool] = parse_tools(json.dumps({"name": "f", "parameters": {**slow, "properties": {"x": {"pattern": "(a+)+$"}}}}))
    assert check_call([tool], ToolCall("f", json.dumps({"x": "a" * 40 + "b", "aaa": 1}))) == ""
