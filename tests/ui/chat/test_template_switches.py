"""The switches that a model has, without a page."""

from typing import Any

import pytest

from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation
from granite_demo.types.messages import Controls, Switches
from granite_demo.ui.chat.template_switches import NO_SWITCH, shown_values

NAMES = ("thinking", "length", "originality", "citations", "hallucinations")
OLD = Switches(
    thinking=("off", "full"),
    length=True,
    originality=True,
    citations=True,
    hallucinations=True,
    conflicts=(("thinking", "system"), ("citations", "no documents")),
)


def shown(switches: Switches, conversation: Conversation | None = None) -> dict[str, Any]:
    values = shown_values(switches, conversation or conversations.start())
    return dict(zip(NAMES, (value.constructor_args for value in values), strict=True))


def test_a_switch_that_the_template_lacks_is_off_with_the_reason() -> None:
    values = shown(Switches(thinking=("full", "low", "off"), citations=True))
    assert [name for name, args in values.items() if args["interactive"]] == ["thinking", "citations"]
    assert all(values[name]["info"] == NO_SWITCH for name in ("length", "originality", "hallucinations"))
    assert values["thinking"]["choices"] == [("Default", ""), ("Full", "full"), ("Low", "low"), ("Off", "off")]


def test_what_the_conversation_has_is_chosen() -> None:
    controls = Controls(thinking="full", length="short", originality="abstractive", hallucinations=True)
    values = shown(OLD, conversations.start(controls=controls))
    chosen = [values[name]["value"] for name in NAMES]
    assert chosen == ["full", "short", "abstractive", False, True]


def test_a_level_that_this_model_lacks_is_not_chosen() -> None:
    assert shown(OLD, conversations.start(controls=Controls(thinking="low")))["thinking"]["value"] == ""


@pytest.mark.parametrize(
    ("values", "disabled"), [({}, {"citations"}), ({"system": "Be brief."}, {"thinking", "citations"})]
)
def test_a_switch_without_effect_is_disabled_with_the_reason(values: Any, disabled: set[str]) -> None:
    args = shown(OLD, conversations.start(**values))
    assert {name for name in NAMES if not args[name]["interactive"]} == disabled
    assert all(bool(args[name]["info"]) == (name in disabled) for name in NAMES)
