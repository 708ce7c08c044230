"""Answers of every dialect: nothing is lost or shown twice, wherever the text is cut and wherever it ends.

The content of the scripts is in capitals that occur in no marker, so that it can be distinguished from the markers.
"""

import time
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from granite_demo.outputs.dialects import DIALECTS
from granite_demo.outputs.parts import Part, Reasoning, Text
from granite_demo.outputs.response_parser import MAX_KEY, ResponseParser
from granite_demo.outputs.tool_calls import CUT_OFF
from granite_demo.types.events import Appendix, Citation
from granite_demo.types.messages import ToolCall

ROWS = {**DIALECTS, **{f"{name} without calls": row.only(calls=False, lists=True) for name, row in DIALECTS.items()}}
SAID = frozenset("ABDEFGIJKLMNOPQRSTUVWXYZÉ日")


@dataclass(frozen=True)
class Script:
    """The text that a model writes, and the parts that the parser must return."""

    name: str
    dialect: str
    text: str
    parts: tuple[Part, ...]
    starts_in_reasoning: bool = False

    def parser(self) -> ResponseParser:
        return ResponseParser(ROWS[self.dialect], starts_in_reasoning=self.starts_in_reasoning)


CALL = '{"name": "f", "arguments": {"x": "É <b>"}}'
CALLED = ToolCall("f", '{"x": "É <b>"}')
XML = "<function=f>\n<parameter=x>\nÉ <b>\n</parameter>\n</function>"
THOUGHT = (Reasoning("WE < I\n\nTIE"), Text("SO.\n\nIT IS"))

SCRIPTS = (
    Script("plain", "plain", " A <think>B</think> <tool_call> D\n", (Text(" A <think>B</think> <tool_call> D\n"),)),
    Script("3.2", "3.2", "Here is my thought process: WE < I\n\nTIE\n\nHere is my response:\n\nSO.\n\nIT IS", THOUGHT),
    Script("3.2 short", "3.2", "\nHere's my thought process:\nWE < I\n\nTIEHere's my response:SO.\n\nIT IS", THOUGHT),
    Script(
        "3.2 no thinking", "3.2", "Here is my DOG <co 1 # Citations: N", (Text("Here is my DOG <co 1 # Citations: N"),)
    ),
    Script("3.2 response only", "3.2", "Here is my response: IT", (Text("IT"),)),
    Script(
        "3.2 citations",
        "3.2",
        'IT IS<co>0</co>. NO<co>2</co>\n\n# Citations:\n\n0: "A"\n\n# Hallucinations:\n1. B\n',
        (
            Text("IT IS"),
            Citation("0", 5, 5),
            Text(". NO"),
            Citation("2", 9, 9),
            Appendix("citations", '0: "A"'),
            Appendix("hallucinations", "1. B"),
        ),
    ),
    Script("3.2 empty appendices", "3.2", "A\n# Citations:\n# Hallucinations:\n", (Text("A"),)),
    Script("3.2 appendix only", "3.2", "# Hallucinations:\n1. B", (Appendix("hallucinations", "1. B"),)),
    Script(
        "3.2 no mark",
        "3.2",
        f"A<co>B\n</co><co>{'D' * MAX_KEY}E</co>",
        (Text(f"A<co>B\n</co><co>{'D' * MAX_KEY}E</co>"),),
    ),
    Script(
        "3.2 longest mark",
        "3.2",
        f"A<co>{'0' * MAX_KEY}</co>B",
        (Text("A"), Citation("0" * MAX_KEY, 1, 1), Text("B")),
    ),
    Script("3.2 call", "3.2", f"<|tool_call|>[{CALL}, {CALL}]\n", (CALLED, CALLED)),
    Script("3.2 other call", "3.2", f"<tool_call>[{CALL}]", (CALLED,)),
    Script("3.3", "3.3", "<think>\nWE < I\n\nTIE\n</think>\n\n<response> SO.\n\nIT IS\n</response>\n", THOUGHT),
    Script("3.3 no response", "3.3", " <think>WE < I\n\nTIE</think>\nSO.\n\nIT IS</response>", THOUGHT),
    Script("3.3 no thinking", "3.3", " A <think>B</think> </response>", (Text(" A <think>B</think> </response>"),)),
    Script("3.3 no thought", "3.3", "<think>\n\n</think><response>IT</response> IS", (Text("IT IS"),)),
    Script(
        "3.3 calls", "3.3", f"A <|tool_call|> [{CALL}]<|tool_call|>[{CALL}] B", (Text("A"), CALLED, CALLED, Text(" B"))
    ),
    Script(
        "3.3 citations",
        "3.3",
        'A <|start_of_cite|>{document_id: 1}DO IT<|end_of_cite|>. B<|start_of_cite|> {"document_id": "2"}'
        '<|end_of_cite|>\n\n{"id": "citation"}\n1: "E"\n{"id": "hallucination"}\n1. Risk low: G',
        (
            Text("A DO IT"),
            Citation("1", 2, 7),
            Text(". B"),
            Citation("2", 10, 10),
            Appendix("citations", '1: "E"'),
            Appendix("hallucinations", "1. Risk low: G"),
        ),
    ),
    Script(
        "3.3 bad citations",
        "3.3",
        "<|start_of_cite|>A<|end_of_cite|><|end_of_cite|> <|start_of_cite|>{document_id: 1}B<|start_of_cite|>"
        "{document_id: 3}D E<|tool_call|>[]",
        (Text("A B"), Citation("1", 2, 3), Text("D E"), Citation("3", 3, 6)),
    ),
    Script("3.3 no mark", "3.3", "<|start_of_cite|>A}B<|end_of_cite|>", (Text("A}B"),)),
    Script("4.0", "4.0", "\n A <tool B <think>", (Text("\n A <tool B <think>"),)),
    Script(
        "4.0 calls",
        "4.0",
        f"\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>\nA\n\n<tool_call>\n{CALL}\n</tool_call>\nB\n"
        f"<tool_call>\n{CALL}\n</tool_call>\n",
        (CALLED, CALLED, Text("A"), CALLED, Text("\nB"), CALLED),
    ),
    Script("4.0 no close", "4.0", f"<tool_call>{CALL}<tool_call>{CALL}</tool_call>", (CALLED, CALLED)),
    Script(
        "4.0 malformed",
        "4.0",
        '<tool_call>\n{"name": "f", "arguments": {É}}\n</tool_call> <tool_call>f(É)</tool_call>',
        (
            ToolCall(
                "f",
                '{"name": "f", "arguments": {É}}',
                "The call cannot be read as JSON: Expecting property name enclosed in double quotes:"
                " line 1 column 29 (char 28).",
            ),
            Text("<tool_call>f(É)</tool_call>"),
        ),
    ),
    Script(
        "4.0 spoken of",
        "4.0",
        "<tool_call> IS A `<tool_call>` TAG\n\n<tool_call> </tool_call>\n\nSO "
        f"<tool_call>\n{CALL}\n</tool_call> B <tool_call> < I",
        (
            Text("<tool_call> IS A `<tool_call>` TAG\n\n<tool_call> </tool_call>\n\nSO"),
            CALLED,
            Text(" B <tool_call> < I"),
        ),
    ),
    Script(
        "4.2 without calls",
        "4.2 without calls",
        f"I\n</think>\n\nA <tool_call>{CALL}</tool_call>",
        (Reasoning("I"), Text(f"A <tool_call>{CALL}</tool_call>")),
        starts_in_reasoning=True,
    ),
    Script(
        "4.0 markers within a text",
        "4.0",
        '<tool_call>{"name": "f", "arguments": {"x": "A </tool_call> \\" <tool_call> \\\\"}}</tool_call> B',
        (ToolCall("f", '{"x": "A </tool_call> \\" <tool_call> \\\\"}'), Text("B")),
    ),
    Script(
        "4.0 text without an end",
        "4.0",
        '<tool_call>{"name": "f", "arguments": {"x": "A\n</tool_call> B',
        (ToolCall("f", '{"name": "f", "arguments": {"x": "A', CUT_OFF), Text("B")),
    ),
    Script(
        "3.3 markers within a text",
        "3.3",
        '<|tool_call|>[{"name": "f", "arguments": {"x": "<tool_call> A"}}]',
        (ToolCall("f", '{"x": "<tool_call> A"}'),),
    ),
    Script(
        "3.3 cited text that speaks of a call",
        "3.3",
        f"<|start_of_cite|>{{document_id: 1}}A <tool_call> B<|end_of_cite|> <|tool_call|>[{CALL}]",
        (Text("A <tool_call> B"), Citation("1", 0, 15), CALLED),
    ),
    Script("4.0 cut off", "4.0", f"A\n<tool_call>\n{CALL[:-1]}", (Text("A"), ToolCall("f", CALL[:-1], CUT_OFF))),
    Script("4.0 no end", "4.0", f"A\n<tool_call>\n{CALL}", (Text("A"), CALLED)),
    Script("4.2", "4.2", "WE < I\n\nTIE\n</think>\nSO.\n\nIT IS", THOUGHT, starts_in_reasoning=True),
    Script("4.2 nothing after", "4.2", "WE \n", (Reasoning("WE"),), starts_in_reasoning=True),
    Script("4.2 thinking too late", "4.2", f"<tool_call>{CALL}</tool_call> <think>I", (CALLED, Text("<think>I"))),
    Script("4.2 off", "4.2", "\nSO. <think>IT", (Text("\nSO. <think>IT"),)),
    Script("4.2 opens itself", "4.2", "<think>\nWE < I\n\nTIE</think>\nSO.\n\nIT IS", THOUGHT),
    Script("4.2 stray close", "4.2", "</think>\nSO </think> IT", (Text("SO </think> IT"),)),
    Script(
        "4.2 unclosed",
        "4.2",
        "\nWE <tool_call> I\n</thi",
        (Reasoning("WE <tool_call> I\n</thi"),),
        starts_in_reasoning=True,
    ),
    Script(
        "4.2 calls",
        "4.2",
        f"I\n</think>\n\nA\n<tool_call>\n{XML}\n</tool_call>\n<tool_call>\n{XML}\n</tool_call>",
        (Reasoning("I"), Text("A"), CALLED, CALLED),
        starts_in_reasoning=True,
    ),
    Script(
        "4.2 call in the thinking",
        "4.2",
        f"\nWE \n\n<tool_call>\n{XML}\n</tool_call>\n<tool_call>{XML}</tool_call>\n</think>\n\nSO </think> IT",
        (Reasoning("WE"), CALLED, CALLED, Text("SO </think> IT")),
        starts_in_reasoning=True,
    ),
    Script(
        "4.2 only a call in the thinking",
        "4.2",
        f" <tool_call>{XML}</tool_call>\n",
        (CALLED,),
        starts_in_reasoning=True,
    ),
    Script(
        "4.2 call that the thinking's end closes",
        "4.2",
        f"<think>WE<tool_call> {XML}\n</think>\nSO <tool_call>{XML}</tool_call>",
        (Reasoning("WE"), CALLED, Text("SO"), CALLED),
    ),
    Script(
        "4.2 text between a call and the thinking's end",
        "4.2",
        f"WE<tool_call>{XML}</tool_call> A\n</think> B",
        (Reasoning("WE"), CALLED, Text("A B")),
        starts_in_reasoning=True,
    ),
    Script(
        "4.2 thinking about calls",
        "4.2",
        f"WE <tool_call></tool_call> I <tool_call> <fun <tool_call> \n</think>SO <tool_call>{XML}</tool_call>",
        (Reasoning("WE <tool_call></tool_call> I <tool_call> <fun <tool_call>"), Text("SO"), CALLED),
        starts_in_reasoning=True,
    ),
    Script(
        "4.2 cut off in the thinking",
        "4.2",
        "WE <tool_call>\n<func",
        (Reasoning("WE"), ToolCall("", "<func", CUT_OFF)),
        starts_in_reasoning=True,
    ),
    Script(
        "4.2 malformed in the thinking",
        "4.2",
        "WE <tool_call><function=f>É</function></tool_call>",
        (Reasoning("WE"), ToolCall("f", "É", "The call has text outside its parameters.")),
        starts_in_reasoning=True,
    ),
    Script(
        "3.3 call in the thinking",
        "3.3",
        f"<think>WE <|tool_call|>[{CALL}]</think>\n<response>SO</response>",
        (Reasoning("WE"), CALLED, Text("SO")),
    ),
    Script(
        "3.2 call in the thinking",
        "3.2",
        f"Here is my thought process: WE\n<tool_call>[{CALL}]\nHere is my response: SO",
        (Reasoning("WE"), CALLED, Text("SO")),
    ),
    Script(
        "4.2 malformed",
        "4.2",
        "<tool_call>\n<function=f>É</function>\n</tool_call><tool_call><function=f>\n<parameter=x>É",
        (
            ToolCall("f", "É", "The call has text outside its parameters."),
            ToolCall("f", "<function=f>\n<parameter=x>É", CUT_OFF),
        ),
    ),
)

every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)


def merge(parts: list[Part]) -> tuple[Part, ...]:
    """Join adjacent parts of one kind, as a reader sees them."""
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, Text) and isinstance(last, Text):
            merged[-1] = Text(last.text + part.text)
        elif isinstance(part, Reasoning) and isinstance(last, Reasoning):
            merged[-1] = Reasoning(last.text + part.text)
        else:
            merged.append(part)
    return tuple(merged)


def said(parts: list[Part]) -> str:
    """Return the capitals that a reader sees."""
    texts = [part.arguments if isinstance(part, ToolCall) else getattr(part, "text", "") for part in parts]
    return capitals("".join(texts))


def capitals(text: str) -> str:
    return "".join(character for character in text if character in SAID)


def run(script: Script, pieces: list[str]) -> tuple[Part, ...]:
    parser = script.parser()
    return merge([part for piece in pieces for part in parser.feed(piece)] + parser.flush())


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cuts), len(text)]
    return [text[start:end] for start, end in zip(edges, edges[1:], strict=False)]


@every_script
def test_every_position_is_a_place_to_cut(script: Script) -> None:
    assert run(script, [script.text]) == run(script, list(script.text)) == script.parts
    for position in range(len(script.text)):
        assert run(script, [script.text[:position], "", script.text[position:]]) == script.parts


@settings(deadline=None)
@given(st.sampled_from(SCRIPTS), st.lists(st.integers(0, 300), max_size=12))
def test_any_cutting_gives_the_same_parts(script: Script, cuts: list[int]) -> None:
    assert run(script, cut(script.text, cuts)) == script.parts


PIECES = sorted(
    {marker for row in DIALECTS.values() for marker in row.markers} | {" ", "\n", "A", "{document_id: 1", CALL, XML}
)


@settings(deadline=None)
@given(
    st.sampled_from(sorted(ROWS)),
    st.booleans(),
    st.lists(st.sampled_from(PIECES) | st.text("<|{#A \n", max_size=3), max_size=12).map("".join),
    st.lists(st.integers(0, 120), max_size=8),
)
def test_any_text_in_any_cutting_gives_the_same_parts(
    name: str, starts_in_reasoning: bool, text: str, cuts: list[int]
) -> None:
    script = Script("any", name, text, (), starts_in_reasoning)
    assert run(script, cut(text, cuts)) == run(script, [text]) == run(script, list(text))


@every_script
def test_an_answer_may_end_anywhere(script: Script) -> None:
    for position in range(len(script.text) + 1):
        parser = script.parser()
        parts = [part for character in script.text[:position] for part in parser.feed(character)]
        before = said(parts)
        parts += parser.flush()
        assert said(parts) == capitals(script.text[:position])
        assert said(parts).startswith(before)
        assert parser.feed("ABD") == parser.flush() == []


@every_script
def test_what_is_held_back_can_be_dropped_anywhere(script: Script) -> None:
    for position in range(len(script.text) + 1):
        parser = script.parser()
        parts = parser.feed(script.text[:position])
        parser.discard()
        assert capitals(script.text).startswith(said(parts))
        assert parser.feed("ABD") == parser.flush() == []


@every_script
def test_only_what_may_be_a_marker_is_held_back(script: Script) -> None:
    if any(isinstance(part, ToolCall | Appendix) for part in script.parts) or "</co>" in script.text:
        return
    parser = script.parser()
    parts: list[Part] = []
    for position, character in enumerate(script.text, 1):
        parts += parser.feed(character)
        if character in SAID:
            assert said(parts) == capitals(script.text[:position])


MARKERS = [(name, marker) for name, row in DIALECTS.items() for marker in row.markers if len(marker) > 1]


@pytest.mark.parametrize(("name", "marker"), MARKERS)
def test_half_a_marker_at_the_end_is_text(name: str, marker: str) -> None:
    parser = ResponseParser(DIALECTS[name])
    assert merge(parser.feed("A") + parser.feed(marker[:-1]) + parser.flush()) == (Text(f"A{marker[:-1]}"),)


@pytest.mark.parametrize("name", ["3.2", "3.3", "4.0", "4.2"])
def test_half_a_marker_is_dropped_when_a_stop_string_ends_the_answer(name: str) -> None:
    row = DIALECTS[name]
    for marker in filter(None, row.of("call_open", "cite_open", "cite_close")):
        parser = ResponseParser(row)
        assert parser.feed("A") == [Text("A")]
        assert parser.feed(marker[:-1]) == []
        parser.discard()
        assert parser.flush() == []


def test_the_parser_knows_whether_it_is_in_the_reasoning() -> None:
    parser = ResponseParser(DIALECTS["3.3"])
    seen = []
    for piece in ("<th", "ink>", "A", "</think", ">", "<response>", "B"):
        parser.feed(piece)
        seen.append(parser.in_reasoning)
    assert seen == [False, True, True, True, False, False, False]
    assert ResponseParser(DIALECTS["4.2"], starts_in_reasoning=True).in_reasoning


def test_a_call_ends_the_reasoning() -> None:
    parser = ResponseParser(DIALECTS["4.2"], starts_in_reasoning=True)
    seen = []
    for piece in ("A ", "<tool_call>", "\n", "tags ", "<tool_call>", "\n<function", "=", "f></function>"):
        parser.feed(piece)
        seen.append(parser.in_reasoning)
    assert seen == [True] * 7 + [False]


SPACES = " \n" * 20_000


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("4.2", ""),
        ("4.2", "<think>"),
        ("4.2", "<think>A<tool_call>"),
        ("4.0", "A<tool_call>"),
        ("3.3", "A"),
        ("3.2", "A\n# Ci"),
    ],
)
def test_long_white_space_is_searched_once(name: str, before: str) -> None:
    script = Script("", name, before + SPACES, ())
    started = time.process_time()
    parts = run(script, list(script.text))
    # About 0.4 s. A search of all white space at each character takes more than ten times as long.
    assert time.process_time() - started < 2
    assert parts == run(script, [script.text])


def test_long_white_space_is_shown_with_the_text_that_follows_it() -> None:
    gap = " " * 10_000
    assert run(Script("", "4.0", "", ()), ["A", gap, "B", gap, "<tool_call>[]</tool_call>"]) == (Text(f"A{gap}B"),)


def test_an_incomplete_citation_mark_is_not_shown() -> None:
    parser = ResponseParser(DIALECTS["3.3"])
    assert merge(parser.feed("A <|start_of_cite|>{document_i")) == (Text("A "),)
    assert parser.flush() == []


def test_a_citation_that_is_cut_off_ends_with_the_text() -> None:
    parser = ResponseParser(DIALECTS["3.3"])
    parser.feed("A <|start_of_cite|>{document_id: 1}DO")
    assert parser.flush() == [Citation("1", 2, 4)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("3.2", "A <co>B</co> D\n# Citations:\nE\n# Hallucinations:\nF"),
        ("3.3", 'A\n{"id": "citation"}\nB <|start_of_cite|>{document_id: 1}D<|end_of_cite|>'),
    ],
)
def test_citations_and_lists_that_nobody_asked_for_are_text(name: str, text: str) -> None:
    parser = ResponseParser(DIALECTS[name].only(calls=True, lists=False))
    assert merge(parser.feed(text) + parser.flush()) == (Text(text),)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("3.2", "```\n<co>0</co>\n# Citations:\n```\nA"),
        ("3.3", '<think>B</think>\n<response>```\n</response>\n{"id": "citation"}\n```\nA'),
    ],
)
def test_markers_in_code_are_text(name: str, text: str) -> None:
    parser = ResponseParser(DIALECTS[name])
    assert merge(parser.feed(text) + parser.flush())[-1] == Text(text[text.index("```") :])
