"""Calls as models really write them: missing ends, markers in values and in code, other nestings, Python."""

import json
import time
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from granite_demo.outputs.dialects import DIALECTS
from granite_demo.outputs.parts import Part, Reasoning, Text
from granite_demo.outputs.response_parser import ResponseParser
from granite_demo.outputs.tool_calls import OUTSIDE
from granite_demo.types.messages import ToolCall, ToolSpec
from tests.outputs.test_response_parser import merge

TOOLS = (
    ToolSpec("f", "", {"type": "object", "properties": {"x": {"type": "string"}, "n": {"type": "integer"}}}),
    ToolSpec("g", "", {"type": "object", "properties": {"y": {"type": "string"}}}),
)


def read(dialect: str, pieces: Any, cut_off: bool = False, tools: tuple[ToolSpec, ...] = TOOLS) -> tuple[Part, ...]:
    parser = ResponseParser(DIALECTS[dialect], tools=tools)
    return merge([part for piece in pieces for part in parser.feed(piece)] + parser.flush(cut_off=cut_off))


def f(x: str, n: int | None = None) -> ToolCall:
    return ToolCall("f", json.dumps({"x": x} if n is None else {"x": x, "n": n}, ensure_ascii=False))


G = ToolCall("g", '{"y": "b"}')
G_XML = "<function=g>\n<parameter=y>\nb\n</parameter>\n</function>"
ONE = '{"name": "f", "arguments": {"x": "a"}}'


@dataclass(frozen=True)
class Case:
    """An answer that the model ended itself, and its parts."""

    dialect: str
    text: str
    parts: tuple[Part, ...]


XML = {
    "no end of a parameter": ("<function=f>\n<parameter=x>\na\n<parameter=n>\n5\n</parameter>\n</function>", f("a", 5)),
    "no end of a parameter, compact": ("<function=f><parameter=x>a<parameter=n>5</parameter></function>", f("a", 5)),
    "no end of the last parameter": ("<function=f>\n<parameter=x>\na\n</function>", f("a")),
    "no end of the function": ("<function=f>\n<parameter=x>\na\n</parameter>", f("a")),
    "no end of both": ("<function=f>\n<parameter=x>\na", f("a")),
    "no parameters": ("<function=f>\n</function>", ToolCall("f", "{}")),
    "no parameters and no end": ("<function=f>\n", ToolCall("f", "{}")),
    "quoted names": ("<function=\"f\">\n<parameter='x'>\na\n</parameter>\n</function>", f("a")),
    "JSON in the function": ('<function=f>\n{"x": "a"}\n</function>', f("a")),
    "the end of a call in a value": (
        "<function=f>\n<parameter=x>\na </tool_call> b\n</parameter>\n</function>",
        f("a </tool_call> b"),
    ),
    "two ends in a value": (
        "<function=f><parameter=x></tool_call>\n</tool_call></parameter></function>",
        f("</tool_call>\n</tool_call>"),
    ),
    "the end of a function in a value": (
        "<function=f><parameter=x>a</function> b</parameter></function>",
        f("a</function> b"),
    ),
    "a whole call in a value": (
        f"<function=f>\n<parameter=x>\nSo: <tool_call>\n{G_XML}\n</tool_call> ok\n</parameter>\n</function>",
        f(f"So: <tool_call>\n{G_XML}\n</tool_call> ok"),
    ),
    "two whole calls in a value": (
        f"<function=f>\n<parameter=x>\n<tool_call>{G_XML}</tool_call>\n<tool_call>{G_XML}</tool_call>\n</parameter>\n"
        "</function>",
        f(f"<tool_call>{G_XML}</tool_call>\n<tool_call>{G_XML}</tool_call>"),
    ),
    "a parameter that the tool does not have, in a value": (
        "<function=f>\n<parameter=x>\na\n<parameter=z>\nb\n</parameter>\n</function>",
        f("a\n<parameter=z>\nb"),
    ),
    "a parameter that is spoken of": (
        "<function=f>\n<parameter=x>\nUse <parameter=n> here\n</parameter>\n</function>",
        f("Use <parameter=n> here"),
    ),
    "code in a value": (
        "<function=f>\n<parameter=x>\n```\n</tool_call>\n```\n</parameter>\n</function>",
        f("```\n</tool_call>\n```"),
    ),
}
JSON = {
    "a nesting of OpenAI": '{"type": "function", "function": {"name": "f", "arguments": {"x": "a"}}}',
    "a nesting without type": '{"function": {"name": "f", "arguments": "{\\"x\\": \\"a\\"}"}}',
    "the name as function": '{"function": "f", "arguments": {"x": "a"}}',
    "a list of OpenAI": '{"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"x": "a"}}}]}',
    "a list": f"[{ONE}]",
    "other names of arguments": '{"name": "f", "args": {"x": "a"}}',
    "an extra brace": ONE + "}",
    "extra brackets": ONE + "}]",
    "a missing brace": ONE[:-1],
    "two missing braces": ONE[:-2],
    "a list without an end": f"[{ONE}",
    "a fence": f"```json\n{ONE}\n```",
    "a fence without a language": f"```\n{ONE}\n```\n",
    "a dictionary of Python": "{'name': 'f', 'arguments': {'x': 'a'}}",
    "Python": 'f(x="a")',
    "Python by position": "f('a')",
    "a list of Python": "[f(x='a')]",
    "Python over several lines": 'f(\n    x="a",\n)',
    "a comma at the end": ONE + ",",
}


def wrapped(body: str, close: str = "\n</tool_call>") -> str:
    return f"<tool_call>\n{body}{close}"


CASES = {
    **{
        f"XML, {name}, then text": Case("4.2", f"A\n{wrapped(body)}\nB", (Text("A"), call, Text("\nB")))
        for name, (body, call) in XML.items()
    },
    **{
        f"XML, {name}, then another": Case("4.2", f"{wrapped(body)}\n{wrapped(G_XML)}", (call, G))
        for name, (body, call) in XML.items()
    },
    **{f"XML, {name}, at the end": Case("4.2", wrapped(body, ""), (call,)) for name, (body, call) in XML.items()},
    **{
        f"JSON, {name}, {dialect}": Case(dialect, f"{wrapped(body)}\n{wrapped(ONE)} B", (f("a"), f("a"), Text("B")))
        for name, body in JSON.items()
        for dialect in ("3.2", "3.3", "4.0", "4.2")
    },
    **{f"JSON, {name}, at the end": Case("4.0", wrapped(body, ""), (f("a"),)) for name, body in JSON.items()},
    "a raw line break": Case("4.0", wrapped('{"name": "f", "arguments": {"x": "a\nb\tc"}}'), (f("a\nb\tc"),)),
    "two objects with a comma": Case("4.0", wrapped(f"{ONE}, {ONE}"), (f("a"), f("a"))),
    "a list of 3.3 with an end": Case("3.3", f"<tool_call>[{ONE}]</tool_call>", (f("a"),)),
    "no end, then text": Case("4.0", f"<tool_call>{ONE}\nB", (f("a"), Text("B"))),
    "no end, then text, then the end": Case("4.0", f"<tool_call>{ONE}\nB</tool_call>\nD", (f("a"), Text("B\nD"))),
    "XML without the end, then text": Case("4.2", f"<tool_call>{G_XML}\nB", (G, Text("B"))),
    "XML without ends, then a call": Case(
        "4.2", f"<tool_call><function=f><parameter=x>a\n<tool_call>{G_XML}</tool_call>\nB", (f("a"), G, Text("B"))
    ),
    "XML without markers": Case("4.2", f"A\n{G_XML}\nB", (Text("A"), G, Text("\nB"))),
    "XML of no known tool": Case("4.2", "A\n<function=z>\n</function>", (Text("A\n<function=z>\n</function>"),)),
    "XML in a line of text": Case("4.2", "A <function=g></function>", (Text("A <function=g></function>"),)),
    "Python without markers": Case("4.0", 'f(x="a", n=5)\ng(y="b")', (f("a", 5), G)),
    "Python of 3.3": Case("3.3", 'So.\n\nf(x="a")\n', (Text("So."), f("a"))),
    "Python in a line of text": Case("4.0", 'f(x="a") is how.', (Text('f(x="a") is how.'),)),
    "Python behind text": Case("4.0", 'So f(x="a")', (Text('So f(x="a")'),)),
    "Python that is no literal": Case("4.0", "f(x=input())\nB", (Text("f(x=input())\nB"),)),
    "Python of no known tool": Case("4.0", 'print(x="a")', (Text('print(x="a")'),)),
    "Python that is spoken of": Case("4.0", wrapped("f(é)"), (Text(wrapped("f(é)")),)),
    "arguments that are no object": Case(
        "4.0",
        wrapped('{"name": "f", "arguments": [1, 2]}'),
        (ToolCall("f", "[1, 2]", "The arguments are not a JSON object."),),
    ),
    "text outside of parameters": Case(
        "4.2", wrapped("<function=f>é\n<parameter=x>\na\n</parameter>\n</function>"),
        (ToolCall("f", "é\n<parameter=x>\na\n</parameter>", OUTSIDE),),
    ),
    "a fence without a line": Case("3.2", "<tool_call>```A", (Text("<tool_call>```A"),)),
    "a fence without a call": Case("4.0", "<tool_call>```A\nB", (Text("<tool_call>```A\nB"),)),
    "a second thought": Case(
        "4.2", "<think>A</think>\n<think>B</think>\nD\n<think>E</think>\nG",
        (Reasoning("AB"), Text("D"), Reasoning("E"), Text("\nG")),
    ),
}  # fmt: skip
EXAMPLES = [
    "```\n{}\n```\nB",
    "A\n```xml\n{}\n```",
    "- A:\n  ````\n  ```\n  {}\n  ```\n  ````",
    "~~~\n{}\n~~~ ",
    "A `{}` B",
    "A ``{}`` B",
    "```\n{}",
]
CASES |= {
    f"an example, {number}, {dialect}": Case(dialect, form.format(call), (Text(form.format(call)),))
    for number, form in enumerate(EXAMPLES)
    for dialect, call in (("4.0", f"<tool_call>{ONE}</tool_call>"), ("4.2", f"<tool_call>{G_XML}</tool_call>"))
    if "\n" not in call or "`{" not in form
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_a_call_is_read_wherever_the_text_is_cut(case: Case) -> None:
    assert read(case.dialect, [case.text]) == read(case.dialect, case.text) == case.parts
    for position in range(len(case.text)):
        assert read(case.dialect, [case.text[:position], case.text[position:]]) == case.parts


@pytest.mark.parametrize("code", ["`a` ", "```\na\n```\n", "`` a` ``\n", "It's a ` tick.\n", "a~~~\n", "```a```\n"])
def test_a_call_after_code_is_a_call(code: str) -> None:
    assert read("4.0", f"{code}<tool_call>{ONE}</tool_call>")[-1] == f("a")


TYPES: list[tuple[Any, str, Any]] = [
    ({"type": "boolean"}, "True", True),
    ({"type": "boolean"}, "false", False),
    ({"type": "boolean"}, "maybe", "maybe"),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "12345", "12345"),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "true", "true"),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null", None),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "None", None),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "5", 5),
    ({"oneOf": [{"type": "boolean"}, {"type": "integer"}]}, "True", True),
    ({"enum": ["1", "2"]}, "1", "1"),
    ({"type": "string", "enum": ["true"]}, "true", "true"),
    ({"enum": [1, 2]}, "1", 1),
    ({"enum": [True, "x"]}, "True", True),
    ({"enum": ["1", 1]}, "1", "1"),
    ({"enum": ["a", None]}, "null", None),
    ({"const": "7"}, "7", "7"),
    ({"$ref": "#/$defs/Kind"}, "1", "1"),
    ({"allOf": [{"$ref": "#/$defs/Kind"}]}, "2", "2"),
    ({"$ref": "#/properties/x"}, "1", 1),
    ({"type": "array"}, "['a', True]", ["a", True]),
    ({"type": "object"}, "{'a': None}", {"a": None}),
    ({"type": "array"}, "[x for x in y]", "[x for x in y]"),
    ({"type": "number"}, "1.50", 1.5),
    ({}, "True", "True"),
    ({}, "[1]", [1]),
]


@pytest.mark.parametrize(("schema", "text", "value"), TYPES)
def test_the_schema_says_what_a_value_of_xml_is(schema: Any, text: str, value: Any) -> None:
    parameters = {"properties": {"x": schema}, "$defs": {"Kind": {"type": "string", "enum": ["1", "2"]}}}
    tools = (ToolSpec("f", "", parameters),)
    parts = read("4.2", [wrapped(f"<function=f>\n<parameter=x>\n{text}\n</parameter>\n</function>")], tools=tools)
    assert [json.loads(part.arguments) for part in parts if isinstance(part, ToolCall)] == [{"x": value}]
    assert type(json.loads(parts[0].arguments)["x"]) is type(value)  # type: ignore[union-attr]  # 1 is True otherwise


PIECES = sorted(
    {
        *(marker for row in DIALECTS.values() for marker in row.markers),
        *("<function=f>", "<function=", "<parameter=x>", "<parameter=n>", "</parameter>", "</function>", ONE, G_XML),
        *("f(", ")", '"', "'", "\\", "{", "}", "[", ",", "`", "```", "~~~", "\n", " ", "A", "é"),
    }
)


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from(sorted(DIALECTS)),
    st.booleans(),
    st.lists(st.sampled_from(PIECES), max_size=24).map("".join),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_any_cut_of_any_text_gives_the_same_parts(name: str, cut_off: bool, text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in zip(edges, edges[1:], strict=False)]
    assert read(name, pieces, cut_off) == read(name, [text], cut_off) == read(name, text, cut_off)


LETTERS = st.text("ABDEGIJ", min_size=1, max_size=2)


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from(sorted(DIALECTS)),
    st.booleans(),
    st.lists(st.sampled_from([piece for piece in PIECES if piece not in (ONE, G_XML)]) | LETTERS, max_size=24),
)
def test_no_letter_is_lost_or_shown_twice(name: str, cut_off: bool, pieces: list[str]) -> None:
    """Capitals that occur in no marker come out in their order, wherever they stand."""
    text = "".join(pieces)
    # An answer can end in a key of a citation, which is not shown; see test_an_incomplete_citation_mark_is_not_shown.
    opened = DIALECTS[name].of("cite_open") if DIALECTS[name].key_open else ()
    assume(not any("\n" not in (end := text.rpartition(one)[2]) and "}" not in end for one in opened if one in text))
    shown = [
        part.name + part.arguments
        if isinstance(part, ToolCall)
        else getattr(part, "text", getattr(part, "document", ""))
        for part in read(name, [text], cut_off)
    ]
    assert [letter for letter in "".join(shown) if letter in "ABDEGIJ"] == [
        letter for letter in text if letter in "ABDEGIJ"
    ]


@settings(deadline=None)
@given(st.sampled_from(sorted(DIALECTS)), st.text("ab \n.,`~{}[]()\"'<>=_é", max_size=60))
def test_text_without_markers_comes_out_as_it_went_in(name: str, text: str) -> None:
    assert "".join(part.text for part in read(name, [text], tools=()) if isinstance(part, Text)) == text


LENGTH = 60_000
LONG = {
    "ends in a string": '<tool_call>{"' + "</tool_call>" * (LENGTH // 12),
    "strings without an end": '<tool_call>{"</tool_call>' * (LENGTH // 24),
    "strings of both kinds": "<tool_call>{'</tool_call><tool_call>{\"\n</tool_call>" * (LENGTH // 48),
    "values without an end": "<tool_call><function=f><parameter=x>a" * (LENGTH // 37),
    "values with ends": "<tool_call><function=f><parameter=x>a</tool_call>\n" * (LENGTH // 50),
    "ends of functions": "<tool_call><function=f><parameter=x>a" + "</function> b" * (LENGTH // 13),
    "ends of parameters": "<tool_call><function=f><parameter=x>a" + "</parameter> b" * (LENGTH // 14),
    "calls in a value": f"<tool_call><function=f><parameter=x>a<tool_call>{G_XML}</tool_call>" * (LENGTH // 100),
    "parameters": "<tool_call><function=f><parameter=x>a" + "\n<parameter=x>" * (LENGTH // 14),
    "Python": "f(\n" * (LENGTH // 3),
    "brackets": "<tool_call>" + "[{(" * (LENGTH // 3),
    "back ticks": "` `` ``` ~~~\n" * (LENGTH // 13),
    "tags": "<tool_call><function=f><parameter=" * (LENGTH // 34),
    "open marks": "<tool_call>" * (LENGTH // 11),
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
@pytest.mark.parametrize("name", ["3.3", "4.2"])
def test_the_time_is_linear(name: str, text: str) -> None:
    """Measured: at most 0.6 s for 60,000 letters, one at a time. A second search of all text takes minutes."""

    def seconds(part: str) -> float:
        started = time.process_time()
        assert read(name, part, cut_off=True)
        return time.process_time() - started

    assert seconds(text) < 4
