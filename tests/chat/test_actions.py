"""Tests for the effect of a question and of each button on a conversation."""

from typing import Any

import pytest

from granite_demo.chat import actions
from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation
from granite_demo.errors import InvalidRequestError
from granite_demo.types.events import Citation
from granite_demo.types.messages import ToolCall


def texts(conversation: Conversation) -> list[str]:
    return [turn.content for turn in conversations.path(conversation)]


@pytest.fixture
def talk() -> Conversation:
    """Two questions with their answers."""
    conversation = conversations.start()
    for text in ("one", "two"):
        conversation = conversations.add(conversation, "user", content=text)
        conversation = conversations.add(conversation, "assistant", content=text.upper(), thinking="hm")
    return conversation


def turn_id(conversation: Conversation, text: str) -> str:
    [found] = [turn.id for turn in conversation.turns.values() if turn.content == text]
    return found


def test_send_adds_the_question(talk: Conversation) -> None:
    changed = actions.send(talk, " three\n")
    assert texts(changed.conversation) == ["one", "ONE", "two", "TWO", " three\n"]
    assert changed.ask


@pytest.mark.parametrize("text", [None, "", " \n\t"])
def test_an_empty_message_is_not_sent(talk: Conversation, text: str | None) -> None:
    assert actions.send(talk, text) == actions.Change(talk, ask=False)


def test_an_edited_question_is_a_new_version(talk: Conversation) -> None:
    changed = actions.edit(talk, turn_id(talk, "two"), "second")
    assert texts(changed.conversation) == ["one", "ONE", "second"]
    assert changed.ask
    back = conversations.show(changed.conversation, turn_id(talk, "two"))
    assert texts(back) == ["one", "ONE", "two", "TWO"]


def test_an_edited_answer_gets_no_new_answer(talk: Conversation) -> None:
    changed = actions.edit(talk, turn_id(talk, "TWO"), "2")
    assert texts(changed.conversation) == ["one", "ONE", "two", "2"]
    assert not changed.ask
    last = conversations.path(changed.conversation)[-1]
    assert (last.role, last.thinking, last.note) == ("assistant", "hm", "edited")
    assert len(conversations.versions(changed.conversation, last.id)) == 2


def test_an_edited_answer_keeps_its_calls_and_the_citations_of_remaining_text() -> None:
    conversation = conversations.add(conversations.start(), "user", content="Why?")
    cites = [
        Citation(document="1", start=0, end=4),
        Citation(document="2", start=6, end=10),
        Citation(document="3", start=4, end=4),
    ]
    call = ToolCall(name="add", arguments="{}")
    values = {"content": "Blue. Red.", "citations": cites, "calls": [call], "made": {"seed": 1}, "vote": "up"}
    conversation = conversations.add(conversation, "assistant", **values)
    last = conversations.path(actions.edit(conversation, conversation.head or "", "Dark: Red.").conversation)[-1]
    assert (last.content, last.calls, last.made, last.vote) == ("Dark: Red.", (call,), {}, "")
    assert last.citations == (Citation(document="2", start=6, end=10),)
    last = conversations.path(actions.edit(conversation, conversation.head or "", "Blue, or Red.").conversation)[-1]
    assert last.citations == (cites[0], Citation(document="2", start=9, end=13), cites[2])


def test_an_edited_result_is_sent_with_the_other_results(talk: Conversation) -> None:
    for name in ("add", "clock", "dice"):
        talk = conversations.add(talk, "tool", name=name, content=f"{name}: 1")
    answered = conversations.add(talk, "assistant", content="All is 1.")
    changed = actions.edit(answered, turn_id(answered, "clock: 1"), "noon")
    assert texts(changed.conversation)[4:] == ["add: 1", "noon", "dice: 1"]
    assert [turn.name for turn in conversations.path(changed.conversation)[4:]] == ["add", "clock", "dice"]
    assert changed.ask


def test_an_unchanged_answer_gets_no_new_version(talk: Conversation) -> None:
    assert actions.edit(talk, turn_id(talk, "TWO"), "TWO") == actions.Change(talk)


@pytest.mark.parametrize("text", [None, "", "  "])
def test_a_message_cannot_be_emptied(talk: Conversation, text: str | None) -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        actions.edit(talk, turn_id(talk, "two"), text)


def test_retry_answers_again_and_keeps_the_answer(talk: Conversation) -> None:
    changed = actions.act(talk, "retry", turn_id(talk, "ONE"))
    assert texts(changed.conversation) == ["one"]
    assert changed.ask
    assert changed.conversation.turns == talk.turns


def test_retry_sends_a_question_without_an_answer(talk: Conversation) -> None:
    waiting = conversations.add(talk, "user", content="three")
    assert actions.act(waiting, "retry", turn_id(waiting, "three")) == actions.Change(waiting, ask=True)


def test_another_version_is_shown_with_the_turns_after_it(talk: Conversation) -> None:
    edited = actions.edit(talk, turn_id(talk, "one"), "first").conversation
    changed = actions.act(edited, "show", turn_id(talk, "one"))
    assert texts(changed.conversation) == ["one", "ONE", "two", "TWO"]
    assert not changed.ask


def test_a_branch_is_a_new_conversation(talk: Conversation) -> None:
    changed = actions.act(talk, "branch", turn_id(talk, "ONE"))
    assert texts(changed.conversation) == ["one", "ONE"]
    assert changed.conversation.id != talk.id
    assert not changed.ask


def test_a_vote_can_be_changed_and_removed(talk: Conversation) -> None:
    answer = turn_id(talk, "ONE")
    votes = []
    for action in ("up", "down", "down"):
        talk = actions.act(talk, action, answer).conversation
        votes.append(talk.turns[answer].vote)
    assert votes == ["up", "down", ""]


@pytest.mark.parametrize(("action", "turn"), [("retry", "gone"), ("fly", None)])
def test_an_unknown_action_or_turn_raises(talk: Conversation, action: str, turn: str | None) -> None:
    with pytest.raises(InvalidRequestError):
        actions.act(talk, action, turn or turn_id(talk, "ONE"))


@pytest.mark.parametrize(("reason", "continues"), [("length", True), ("stopped", True), ("stop", False)])
def test_only_the_last_answer_can_be_continued_if_it_was_cut(talk: Conversation, reason: str, continues: bool) -> None:
    made = {"finish_reason": reason, "token_ids": [1, 2]}
    for name in ("ONE", "TWO"):
        talk = conversations.change(talk, turn_id(talk, name), made=made)
    assert not actions.can_continue(talk, talk.turns[turn_id(talk, "ONE")])
    last = turn_id(talk, "TWO")
    assert actions.can_continue(talk, talk.turns[last]) == continues
    if continues:
        changed = actions.act(talk, "go", last, made)
        assert (texts(changed.conversation), changed.ask, changed.begun) == (["one", "ONE", "two"], True, made)
    with pytest.raises(InvalidRequestError, match="cannot be continued"):
        actions.act(talk, "go", last, None)


@pytest.mark.parametrize(
    ("turn", "continues"),
    [
        ({"content": "Half", "note": "3 tokens · interrupted"}, True),
        ({"content": "Half", "note": "3 tokens"}, False),
        ({"content": "", "note": "Waiting for the first token · interrupted"}, False),
        ({"content": "Half", "thinking": "Hm", "note": "3 tokens · interrupted"}, False),
    ],
)
def test_a_part_of_an_answer_is_continued_from_its_text(
    talk: Conversation, turn: dict[str, Any], continues: bool
) -> None:
    talk = conversations.add(conversations.add(talk, "user", content="three"), "assistant", **turn)
    last = talk.head or ""
    assert actions.can_continue(talk, talk.turns[last]) == continues
    if continues:
        changed = actions.act(talk, "go", last, None)
        assert (texts(changed.conversation)[-1], changed.ask, changed.begun) == ("three", True, {"text": "Half"})
