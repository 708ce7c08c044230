"""Tests that no turn of a conversation is lost, and that values from the browser are checked."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import (
    MAX_TEXT,
    MAX_TURNS,
    READABLE_TURNS,
    TITLE_LENGTH,
    Conversation,
    Turn,
    add,
    branch,
    change,
    dump,
    find,
    load,
    path,
    rewind,
    show,
    start,
    title_of,
    versions,
)
from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import Controls, Document, Message, ToolCall

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


def talk(*texts: str) -> Conversation:
    """Return a conversation of alternate questions and answers."""
    conversation = start()
    for number, text in enumerate(texts):
        conversation = add(conversation, "assistant" if number % 2 else "user", content=text)
    return conversation


def shown(conversation: Conversation) -> list[str]:
    return [turn.content for turn in path(conversation)]


class Tree(RuleBasedStateMachine):
    """Random operations in random order: the tree is always valid and contains all texts."""

    def __init__(self) -> None:
        super().__init__()
        self.conversation = start()
        self.said: dict[str, str] = {}

    def some_turn(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(list(self.conversation.turns)))

    def remember(self) -> None:
        head = self.conversation.turns[str(self.conversation.head)]
        self.said[head.id] = head.content

    @rule(role=st.sampled_from(["user", "assistant", "tool"]), text=TEXTS)
    def add(self, role: Any, text: str) -> None:
        before = path(self.conversation)
        self.conversation = add(self.conversation, role, content=text)
        assert path(self.conversation)[:-1] == before
        self.remember()

    @precondition(lambda self: self.conversation.turns)
    @rule(data=st.data(), text=TEXTS)
    def edit(self, data: st.DataObject, text: str) -> None:
        old = find(self.conversation, self.some_turn(data))
        count = len(versions(self.conversation, old.id))
        self.conversation = add(self.conversation, old.role, content=text, parent=old.parent)
        assert versions(self.conversation, old.id)[count] == self.conversation.head
        self.remember()

    @precondition(lambda self: self.conversation.turns)
    @rule(data=st.data())
    def show(self, data: st.DataObject) -> None:
        turn = self.some_turn(data)
        self.conversation = show(self.conversation, turn)
        assert turn in [each.id for each in path(self.conversation)]
        assert self.conversation.head not in {each.parent for each in self.conversation.turns.values()}

    @precondition(lambda self: self.conversation.turns)
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        turn = self.some_turn(data)
        self.conversation = rewind(self.conversation, turn)
        assert path(self.conversation)[-1].id == turn

    @precondition(lambda self: self.conversation.turns)
    @rule(data=st.data(), note=TEXTS)
    def change(self, data: st.DataObject, note: str) -> None:
        turn = self.some_turn(data)
        self.conversation = change(self.conversation, turn, note=note)
        assert find(self.conversation, turn).note == note

    @precondition(lambda self: self.conversation.turns)
    @rule(data=st.data())
    def branch(self, data: st.DataObject) -> None:
        turn = self.some_turn(data)
        expected = path(rewind(self.conversation, turn))
        branched = branch(self.conversation, turn)
        assert branched.id != self.conversation.id
        assert path(branched) == expected == list(branched.turns.values())
        assert load(dump(branched)) == branched

    @invariant()
    def nothing_is_lost(self) -> None:
        assert {turn.id: turn.content for turn in self.conversation.turns.values()} == self.said

    @invariant()
    def it_survives_the_browser(self) -> None:
        assert load(dump(self.conversation)) == self.conversation

    @invariant()
    def every_turn_can_be_reached(self) -> None:
        for turn in self.conversation.turns.values():
            assert turn.id in versions(self.conversation, turn.id)


TestTree = Tree.TestCase
TestTree.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_the_path_follows_the_head() -> None:
    conversation = talk("one", "two", "three")
    assert shown(conversation) == ["one", "two", "three"]
    assert shown(rewind(conversation, None)) == []
    assert len(rewind(conversation, None).turns) == 3


def test_an_edit_adds_a_version_and_the_old_version_keeps_its_continuation() -> None:
    conversation = talk("question", "answer", "more", "last")
    first = path(conversation)[0]
    edited = add(conversation, "user", content="edited", parent=first.parent)
    assert shown(edited) == ["edited"]
    assert versions(edited, first.id) == [first.id, edited.head]
    assert shown(show(edited, first.id)) == ["question", "answer", "more", "last"]


def test_show_follows_the_newest_continuation() -> None:
    conversation = talk("question", "answer one")
    question = path(conversation)[0].id
    conversation = add(conversation, "assistant", content="answer two", parent=question)
    assert shown(show(conversation, question)) == ["question", "answer two"]


def test_a_conversation_is_never_changed_in_place() -> None:
    conversation = talk("one", "two")
    before = dump(conversation)
    add(conversation, "user", content="three")
    change(conversation, str(conversation.head), vote="up")
    rewind(conversation, None)
    assert dump(conversation) == before


def test_dump_leaves_defaults_out_and_keeps_the_version() -> None:
    value = dump(talk("one"))
    assert value["version"] == 1
    assert set(value) == {"version", "id", "created", "updated", "head", "turns"}
    (turn,) = value["turns"].values()
    assert set(turn) == {"id", "role", "content"}


@pytest.mark.parametrize("nothing", [None, {}, "", []])
def test_no_value_is_an_empty_conversation(nothing: Any) -> None:
    assert load(nothing).turns == {}


def turn(name: str, parent: str | None = None, **values: Any) -> dict[str, Any]:
    return {"id": name, "parent": parent, "role": "user", **values}


@pytest.mark.parametrize(
    "value",
    [
        "text",
        [1],
        {"id": ""},
        {"id": "c" * 41},
        {"id": "c", "version": 2},
        {"id": "c", "head": "missing"},
        {"id": "c", "turns": []},
        {"id": "c", "turns": {"a": "text"}},
        {"id": "c", "turns": {"a": turn("b")}},
        {"id": "c", "turns": {"a": turn("a", "a")}},
        {"id": "c", "turns": {"a": turn("a", "b"), "b": turn("b", "a")}},
        {"id": "c", "turns": {"a": turn("a", "b"), "b": turn("b")}},
        {"id": "c", "turns": {"a": turn("a", role="system")}},
        {"id": "c", "turns": {"a": turn("a", content=5)}},
        {"id": "c", "turns": {"a": turn("a", content="lone \ud800")}},
        {"id": "c", "turns": {"a": turn("a", content="x" * (MAX_TEXT + 1))}},
        {"id": "c", "turns": {"a": turn("a", thinking_seconds=float("nan"))}},
        {"id": "c", "turns": {"a": turn("a", citations=[{"document": "1", "start": -1, "end": 0}])}},
        {"id": "c", "turns": {"a": turn("a", calls=[{"name": "x" * (MAX_TEXT + 1), "arguments": "{}"}])}},
        {"id": "c", "turns": {"a": turn("a", appendices=[{"kind": "sources", "text": ""}])}},
        {"id": "c", "documents": [{"title": "t", "text": "x" * (MAX_TEXT + 1)}]},
        {"id": "c", "turns": {str(n): turn(str(n)) for n in range(READABLE_TURNS + 1)}},
        {"id": "c", "title": "x" * 201},
        {"id": "c", "documents": [{"title": "t", "text": ""}] * 65},
        {"id": "c", "controls": {"thinking": "much"}},
        {"id": "c", "overflow": "explode"},
    ],
)
def test_a_value_that_is_not_a_conversation_raises(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match="not a conversation that granite-demo can read"):
        load(value)


def test_the_error_names_the_field_and_shows_no_value() -> None:
    with pytest.raises(InvalidRequestError, match=r"turns\.a\.content: ") as raised:
        load({"id": "c", "turns": {"a": turn("a", content={"secret": 1})}})
    assert "secret" not in str(raised.value)


def test_unknown_fields_are_ignored() -> None:
    assert load({"id": "c", "future": 1, "turns": {"a": turn("a", future=2)}}).turns["a"].role == "user"


def test_an_unknown_turn_raises() -> None:
    for work in (find, versions, show, rewind, branch):
        with pytest.raises(InvalidRequestError, match="no longer part"):
            work(talk("one"), "gone")
    with pytest.raises(InvalidRequestError, match="no longer part"):
        change(talk("one"), "gone", vote="up")


def test_the_number_of_turns_is_limited() -> None:
    turns = {str(number): Turn(id=str(number), role="user") for number in range(MAX_TURNS)}
    full = start(turns=turns)
    with pytest.raises(InvalidRequestError, match="Start a new one"):
        add(full, "user", content="one too many")
    assert change(full, "0", vote="up").turns["0"].vote == "up"


def test_a_turn_with_invalid_values_raises() -> None:
    with pytest.raises(InvalidRequestError):
        add(start(), "user", content="x" * (MAX_TEXT + 1))
    with pytest.raises(InvalidRequestError):
        change(talk("one"), str(talk("one").head), vote="sideways")


def test_a_turn_with_an_unknown_parent_raises() -> None:
    with pytest.raises(InvalidRequestError, match="no longer part"):
        add(talk("one"), "user", content="x", parent="nowhere")


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("Hello", "Hello"),
        ("  two\n lines ", "two lines"),
        ("x" * TITLE_LENGTH, "x" * TITLE_LENGTH),
        ("x" * (TITLE_LENGTH + 1), "x" * (TITLE_LENGTH - 1) + "…"),
    ],
)
def test_the_title_is_the_first_question(question: str, title: str) -> None:
    assert title_of(talk(question, "answer", "other")) == title


def test_a_chosen_title_has_priority_and_an_empty_conversation_has_none() -> None:
    assert title_of(start()) == ""
    assert title_of(talk("Hello").model_copy(update={"title": "Mine"})) == "Mine"


def test_the_title_is_the_newest_version_of_the_first_question() -> None:
    asked = talk("Hello", "answer", "More")
    edited = add(asked, "user", content="Goodbye", parent=None)
    assert title_of(edited) == "Goodbye"
    assert title_of(show(edited, next(iter(asked.turns)))) == "Hello"


def test_the_title_of_a_branch_is_within_the_limit() -> None:
    conversation = talk("one").model_copy(update={"title": "x" * 200})
    branched = branch(conversation, str(conversation.head))
    assert branched.title.endswith("(branch)")
    assert load(dump(branched)) == branched


def test_messages_are_those_of_the_branch_that_is_shown() -> None:
    conversation = start(system="  Be brief.  ")
    conversation = add(conversation, "user", content="Weather?")
    question = str(conversation.head)
    conversation = add(conversation, "assistant", content="another version")
    calls = (ToolCall(name="weather", arguments="{}"), ToolCall(name="", arguments="{", error="cut short"))
    conversation = add(conversation, "assistant", thinking="hm", calls=calls, parent=question)
    conversation = add(conversation, "tool", content="sunny", name="weather")
    assert conversations.to_messages(conversation) == (
        Message("system", "Be brief."),
        Message("user", "Weather?"),
        Message("assistant", "{", "hm", (ToolCall("weather", "{}"),)),
        Message("tool", "sunny", name="weather"),
    )


def test_an_empty_answer_is_not_sent() -> None:
    conversation = add(talk("Hello"), "assistant", note="The engine failed.", kind="error")
    assert conversations.to_messages(conversation) == (Message("user", "Hello"),)


def test_documents_and_switches_have_the_types_of_a_request() -> None:
    values = {"documents": [{"title": "t", "text": "x"}], "controls": {"thinking": "full", "citations": True}}
    conversation = load({"id": "c", **values})
    assert conversation.documents == (Document("t", "x"),)
    assert conversation.controls == Controls(thinking="full", citations=True)


@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_no_value_breaks_the_reader(value: Any) -> None:
    for field in ("turns", "head", "title", "system", "documents", "controls", "version", "updated"):
        with suppress(InvalidRequestError):
            load({"id": "c", field: value})


def test_unanswered_goes_back_to_the_last_question() -> None:
    conversation = talk("one", "two")
    question = conversations.unanswered(conversation)
    assert [turn.role for turn in path(question)][-1] == "user"
    assert conversations.unanswered(question) == question
    assert conversations.unanswered(start()).head is None


def test_a_version_is_of_the_same_kind() -> None:
    """An answer and a question can have the same parent."""
    conversation = talk("one")
    first = str(conversation.head)
    conversation = add(conversation, "assistant", content="ONE")
    conversation = add(conversation, "user", content="two", parent=first)
    assert conversations.versions(conversation, str(conversation.head)) == [conversation.head]


def test_a_conversation_that_two_tabs_filled_can_be_opened() -> None:
    turns = {str(number): Turn(id=str(number), role="user") for number in range(MAX_TURNS + 1)}
    assert len(load({"id": "c", "turns": {name: turn.model_dump() for name, turn in turns.items()}}).turns) > MAX_TURNS
