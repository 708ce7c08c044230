"""What is saved of the definitions, which calls wait for results, and markup that nothing can break out of."""

import json

import pytest

from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation, Turn
from granite_demo.chat.tools import EXAMPLE_TOOLS, MAX_TOOLS_BYTES, parse_tools, to_json
from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import ToolCall
from granite_demo.ui.chat.tools import (
    MAX_RESULT,
    call_card,
    pending,
    pending_card,
    result_card,
    run_call,
    shown_values,
    verdict,
    waits_for_answer,
    with_examples,
    with_results,
)
from granite_demo.ui.gradio_patches.events import DAMAGED

SUM = ToolCall(name="calculator", arguments='{"expression": "6 * 7"}')
TIME = ToolCall(name="current_time", arguments="{}")
WEATHER = ToolCall(name="weather", arguments="{}")
BROKEN = ToolCall(name="", arguments='{"expression": ', error="It ends too early.")


def asked(*calls: ToolCall, tools: str = "") -> Conversation:
    conversation = conversations.add(conversations.start(tools=tools), "user", content="How much?")
    return conversations.add(conversation, "assistant", calls=calls)


def last(conversation: Conversation) -> Turn:
    return conversations.path(conversation)[-1]


# The definitions


def test_what_can_be_read_is_named() -> None:
    assert "calculator, current_time" in verdict(f"{to_json(EXAMPLE_TOOLS)}\n")


def test_malformed_definitions_have_an_error() -> None:
    message = verdict("[{]")
    assert 'class="error"' in message
    assert "line 1, column 3" in message


def test_no_text_is_no_tools() -> None:
    assert verdict(" ") == ""


def test_the_examples_are_added_to_what_is_there() -> None:
    text, message = with_examples('[{"name": "weather"}, {"name": "calculator"}]')
    assert [spec.name for spec in parse_tools(text)] == ["weather", "calculator", "current_time"]
    assert message == ""
    assert with_examples("")[0] == to_json(EXAMPLE_TOOLS)


def test_the_examples_do_not_replace_what_cannot_be_read() -> None:
    text, message = with_examples("[{]")
    assert "value" not in text
    assert "not JSON" in message


def test_the_panel_follows_the_conversation() -> None:
    text, message = shown_values(asked(tools=to_json(EXAMPLE_TOOLS)))
    assert text == to_json(EXAMPLE_TOOLS)
    assert "current_time" in message
    assert "takes none" in shown_values(asked(tools=to_json(EXAMPLE_TOOLS)), "This model takes none.")[1]
    assert shown_values(asked(tools="{")) == ("{", "")


# The results


def test_calls_wait_until_each_has_a_result() -> None:
    conversation = asked(SUM, BROKEN)
    assert pending(conversation) == (SUM, BROKEN)
    conversation = conversations.add(conversation, "tool", content="42")
    assert pending(conversation) == (BROKEN,)
    assert pending(conversations.add(conversation, "tool", content="none")) == ()


def test_nothing_waits_elsewhere() -> None:
    assert pending(conversations.start()) == ()
    assert pending(asked()) == ()
    assert pending(conversations.add(asked(SUM), "user", content="Never mind.")) == ()


def test_results_follow_the_calls() -> None:
    conversation = with_results(asked(SUM, WEATHER), ["42", " sunny ", "", None])
    turns = conversations.path(conversation)[-2:]
    assert [(turn.role, turn.name, turn.content) for turn in turns] == [
        ("tool", "calculator", "42"),
        ("tool", "weather", " sunny "),
    ]
    assert pending(conversation) == ()
    assert conversations.to_messages(conversation)[-1].role == "tool"


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (["42", " "], "Result 2 is empty"),
        ([None, "sunny"], "Result 1 is empty"),
        (["x" * (MAX_RESULT + 1), "sunny"], "Result 1 has more than"),
    ],
)
def test_a_missing_result_has_an_error(results: list[str | None], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        with_results(asked(SUM, WEATHER), results)


def test_results_without_calls_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="No call waits"):
        with_results(asked(), ["42"])


def test_only_the_examples_run() -> None:
    assert run_call(["calculator", SUM.arguments]) == {"result": "42"}
    assert "cannot be run here" in run_call(["weather", "{}"])["error"]
    assert run_call("x") == run_call(None) == {"error": DAMAGED}


def test_changed_arguments_are_a_new_version_of_the_answer() -> None:
    before = asked(SUM, WEATHER)
    after = with_results(before, ["63", "sunny"], ['{"expression": "7 * 9"}', WEATHER.arguments])
    _, answer, *results = conversations.path(after)
    assert [call.arguments for call in answer.calls] == ['{"expression": "7 * 9"}', "{}"]
    assert (answer.note, answer.parent) == ("edited", before.turns[before.head or ""].parent)
    assert before.head in after.turns
    assert [turn.content for turn in results] == ["63", "sunny"]
    same = with_results(before, ["42", "sunny"], [SUM.arguments, WEATHER.arguments])
    assert len(same.turns) == len(before.turns) + 2


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": ' + '"' + "x" * MAX_TOOLS_BYTES + '"}', "[" * 100_000])
def test_arguments_that_are_no_object_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="arguments of call 2 must be a JSON object"):
        with_results(asked(SUM, TIME), ["42", "noon"], [SUM.arguments, text])


# The cards


def test_arguments_are_set_out() -> None:
    card = call_card(SUM)
    assert '<div class="card call">' in card
    assert "<b>calculator</b>" in card
    assert "&quot;expression&quot;: &quot;6 * 7&quot;" in card


def test_a_malformed_call_is_shown_as_it_came() -> None:
    card = call_card(ToolCall(name="<i>", arguments="{'a'\n\n<script>", error="Not\n\nJSON <b>"))
    assert '<div class="card call malformed">' in card
    assert "&#10;&#10;&lt;script&gt;" in card
    assert "&lt;i&gt;" in card
    assert "Not JSON &lt;b&gt;" in card


@pytest.mark.parametrize("arguments", ["", "{", "[" * 100_000, json.dumps({"x": "\n\n</pre><script>"})])
def test_no_arguments_break_the_markup(arguments: str) -> None:
    conversation = asked(ToolCall(name="\n\n</div><script>", arguments=arguments))
    for card in (call_card(last(conversation).calls[0]), pending_card(conversation, last(conversation), 0)):
        assert "\n" not in card
        assert "<script>" not in card


def test_a_card_that_waits_says_what_can_be_done() -> None:
    conversation = asked(SUM, WEATHER, BROKEN, tools=to_json(EXAMPLE_TOOLS))
    turn = last(conversation)
    run, typed, broken = (pending_card(conversation, turn, place) for place in range(3))
    assert f'<div class="card call pending runs t-{turn.id} n-0">' in run
    assert f'<div class="card call malformed pending t-{turn.id} n-1">' in typed
    assert "does not exist" in typed
    assert "It ends too early." in broken


def test_a_result_is_escaped() -> None:
    card = result_card(Turn(id="t", role="tool", name="calc", content="<b>1</b>\r\n\n2"))
    assert card == (
        '<div class="card result"><div class="card-head">Result of <b>calc</b></div>'
        "<pre>&lt;b&gt;1&lt;/b&gt;&#10;&#10;2</pre></div>"
    )


def test_only_a_question_or_the_last_result_is_to_be_answered() -> None:
    question = conversations.add(conversations.start(), "user", content="How much?")
    assert waits_for_answer(question)
    assert not waits_for_answer(conversations.start())
    called = asked(SUM, TIME)
    assert not waits_for_answer(called)
    one = conversations.add(called, "tool", name="calculator", content="42")
    assert not waits_for_answer(one)
    assert waits_for_answer(conversations.add(one, "tool", name="current_time", content="12"))
