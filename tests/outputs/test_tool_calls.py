"""Well-formed and malformed tool calls: nothing raises, and no text is lost."""

import json
import time
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from granite_demo.outputs.dialects import DIALECTS
from granite_demo.outputs.parts import Part
from granite_demo.outputs.response_parser import ResponseParser
from granite_demo.outputs.tool_calls import CUT_OFF, read_calls
from granite_demo.types.messages import ToolCall, ToolSpec

READABLE = [
    ('{"name": "f", "arguments": {"city": "Zürich"}}', [("f", '{"city": "Zürich"}')]),
    (
        '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"x": [1, 2.5]}}]',
        [("f", "{}"), ("g", '{"x": [1, 2.5]}')],
    ),
    ('{"name": "f", "arguments": "{\\"x\\": 1}"}', [("f", '{"x": 1}')]),
    ('{"name": "f", "arguments": ""}', [("f", "{}")]),
    ('{"name": "f", "arguments": null}', [("f", "{}")]),
    ('{"name": "f"}', [("f", "{}")]),
    ('{"name": "f", "parameters": {"x": 1}}', [("f", '{"x": 1}')]),
    ('{"name": "f"}\n{"name": "g"}', [("f", "{}"), ("g", "{}")]),
    ("[]", []),
    ("<function=f>\n</function>", [("f", "{}")]),
    ("<function=f>\n<parameter=city>\nZürich\n</parameter>\n</function>", [("f", '{"city": "Zürich"}')]),
    (
        "<function=f><parameter=n>12</parameter><parameter=b>true</parameter></function>",
        [("f", '{"n": 12, "b": true}')],
    ),
    ("<function=f><parameter=l>[1, {}]</parameter></function>", [("f", '{"l": [1, {}]}')]),
    ("<function=f><parameter=n>\n\n x \n\n</parameter></function>", [("f", '{"n": "\\n x \\n"}')]),
    ("<function=f><parameter=n>NaN</parameter></function>", [("f", '{"n": "NaN"}')]),
    ("<function=f><parameter=n>1e999</parameter></function>", [("f", '{"n": "1e999"}')]),
    ("<function=f><parameter=a>x </parameter> y</parameter></function>", [("f", '{"a": "x </parameter> y"}')]),
    ("<function=f><parameter=a>x</function> y</parameter></function>", [("f", '{"a": "x</function> y"}')]),
    ("<function=f></function>\n<function=g></function>", [("f", "{}"), ("g", "{}")]),
]
MALFORMED = [
    ("", "", CUT_OFF),
    ('{"name": "f", "arguments": {"x": "a', "f", CUT_OFF),
    ('[{"name": "f", "arguments": {}}', "f", CUT_OFF),
    ("get_weather(city)", "", "cannot be read as JSON"),
    ("{'name': f}", "", "cannot be read as JSON"),
    ('{"name": "f", "arguments": {"x": NaN}}', "f", "NaN is not valid JSON"),
    ('{"name": "f", "arguments": {"x": 1e999}}', "f", "1e999 is not valid JSON"),
    ('{"arguments": {"x": 1}}', "", "no name"),
    ('{"name": 5}', "", "no name"),
    ('"f"', "", "no name"),
    ('{"name": "f", "arguments": [1]}', "f", "not a JSON object"),
    ('{"name": "f", "arguments": "x = 1"}', "f", "arguments cannot be read"),
    ("[" * 100_000, "", "nested too deeply"),
    ('{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}", "f", "cannot be read as JSON"),
]


def parsed(raw: str, tools: Sequence[ToolSpec] = ()) -> list[Part]:
    """Return the parts of an answer that is one call."""
    parser = ResponseParser(DIALECTS["4.2"], tools=tools)
    return parser.feed(f"<tool_call>{raw}</tool_call>") + parser.flush(cut_off=False)


@pytest.mark.parametrize(("raw", "calls"), READABLE)
def test_calls_are_read(raw: str, calls: list[tuple[str, str]]) -> None:
    assert parsed(raw) == parsed(f"\n{raw}\n") == [ToolCall(*call) for call in calls]
    if not raw.startswith("<"):
        assert read_calls(raw) == read_calls(f"\n{raw}\n") == (parsed(raw), "")


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "42", "42"),
        ({"type": "string"}, "null", "null"),
        ({"type": "string"}, '"a"', '"a"'),
        ({"type": ["string", "null"]}, "08540", "08540"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": "integer"}, "42", 42),
        ({"enum": [42]}, "42", 42),
        ("no schema", "42", 42),
    ],
)
def test_xml_values_are_strings_if_the_schema_says_so(schema: object, text: str, value: object) -> None:
    tools = [ToolSpec(name, "", {"properties": {"x": schema}}) for name in ("f", "g")]
    raw = f"<function=f>\n<parameter=x>\n{text}\n</parameter>\n</function>"
    [call] = parsed(raw, tools)
    assert isinstance(call, ToolCall)
    assert json.loads(call.arguments) == {"x": value}
    assert parsed(raw) == parsed(raw, [ToolSpec("f", "", {})]) == parsed(raw, [ToolSpec("g", "", {})])


@pytest.mark.parametrize(("raw", "name", "error"), MALFORMED, ids=lambda text: text[:40])
def test_malformed_calls_say_why(raw: str, name: str, error: str) -> None:
    [call], rest = read_calls(raw)
    assert (call.name, rest) == (name, "")
    assert error in call.error
    assert call.arguments in raw or json.loads(call.arguments) in (json.loads(raw), [1])


def test_text_after_a_call_is_returned() -> None:
    assert read_calls('[{"name": "f"}]\nThere you are.') == ([ToolCall("f", "{}")], "There you are.")


def test_a_bad_call_does_not_hide_the_good_ones() -> None:
    calls, _ = read_calls('[{"name": "f"}, {"nom": "g"}] {"name": "h", ')
    assert [(call.name, bool(call.error)) for call in calls] == [("f", False), ("", True), ("h", True)]


LENGTH = 200_000
LONG = {
    "escapes in a string": '{"a":"' + '\\"' * (LENGTH // 2),
    "strings": '{"a":' + '"\\' * (LENGTH // 2),
    "names": '"name" ' * (LENGTH // 7),
}


@pytest.mark.parametrize("raw", LONG.values(), ids=LONG.keys())
def test_long_calls_are_searched_once(raw: str) -> None:
    started = time.process_time()
    [call], _ = read_calls(raw)
    # A parser that searches again from each tag or quotation mark takes minutes.
    assert time.process_time() - started < 2
    assert call.error


def test_many_calls_take_linear_time() -> None:
    started = time.process_time()
    calls, _ = read_calls("{} " * (LENGTH // 3) + "x")
    assert len(calls) == LENGTH // 3
    assert time.process_time() - started < 8


def test_the_position_of_an_error_counts_from_its_own_call() -> None:
    _, call = read_calls('{"name": "f"} {"name": g}')[0]
    assert call.arguments == '{"name": g}'
    assert call.error.endswith("line 1 column 10 (char 9).")


PIECES = [
    '{"name": "f"',
    "<function=f>",
    "</function>",
    "<parameter=x>",
    "</parameter>",
    '"',
    "{",
    "}",
    "[",
    ",",
    "\\",
    "é\ud800",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join))
@example('{"name": "\ud800"}')
def test_nothing_raises_and_arguments_are_objects(raw: str) -> None:
    calls, _ = read_calls(raw)
    for call in calls:
        assert call.error or isinstance(json.loads(call.arguments), dict)
