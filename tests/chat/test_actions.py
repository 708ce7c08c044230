"""What each way to ask, and each button, does to a conversation."""

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


def test_what_was_written_is_asked(talk: Conversation) -> None:
    asked = actions.send(talk, " three\n")
    assert texts(asked.conversation) == ["one", "ONE", "two", "TWO", " three\n"]
    assert asked.ask


@pytest.mark.parametrize("text", [None, "", " \n\t"])
def test_nothing_is_asked_where_nothing_was_written(talk: Conversation, text: str | None) -> None:
    assert actions.send(talk, text) == actions.Change(talk, ask=False)


def test_an_edited_question_is_asked_beside_the_old_one(talk: Conversation) -> None:
    asked = actions.edit(talk, turn_id(talk, "two"), "second")
    assert texts(asked.conversation) == ["one", "ONE", "second"]
    assert asked.ask
    back = conversations.show(asked.conversation, turn_id(talk, "two"))
    assert texts(back) == ["one", "ONE", "two", "TWO"]


def test_an_edited_answer_stands_as_written(talk: Conversation) -> None:
    asked = actions.edit(talk, turn_id(talk, "TWO"), "2")
    assert texts(asked.conversation) == ["one", "ONE", "two", "2"]
    assert not asked.ask
    last = conversations.path(asked.conversation)[-1]
    assert (last.role, last.thinking, last.note) == ("assistant", "hm", "edited")
    assert len(conversations.versions(asked.conversation, last.id)) == 2


def test_an_edited_answer_keeps_its_calls_and_the_citations_of_what_it_still_says() -> None:
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


def test_an_edited_result_is_told_with_the_other_results(talk: Conversation) -> None:
    for name in ("add", "clock", "dice"):
        talk = conversations.add(talk, "tool", name=name, content=f"{name}: 1")
    answered = conversations.add(talk, "assistant", content="All is 1.")
    asked = actions.edit(answered, turn_id(answered, "clock: 1"), "noon")
    assert texts(asked.conversation)[4:] == ["add: 1", "noon", "dice: 1"]
    assert [turn.name for turn in conversations.path(asked.conversation)[4:]] == ["add", "clock", "dice"]
    assert asked.ask


def test_an_answer_that_was_not_changed_has_no_new_version(talk: Conversation) -> None:
    assert actions.edit(talk, turn_id(talk, "TWO"), "TWO") == actions.Change(talk)


@pytest.mark.parametrize("text", [None, "", "  "])
def test_a_message_cannot_be_emptied(talk: Conversation, text: str | None) -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        actions.edit(talk, turn_id(talk, "two"), text)


def test_retry_answers_again_and_keeps_the_answer(talk: Conversation) -> None:
    asked = actions.act(talk, "retry", turn_id(talk, "ONE"))
    assert texts(asked.conversation) == ["one"]
    assert asked.ask
    assert asked.conversation.turns == talk.turns


def test_a_question_without_an_answer_is_asked_again(talk: Conversation) -> None:
    waiting = conversations.add(talk, "user", content="three")
    assert actions.act(waiting, "retry", turn_id(waiting, "three")) == actions.Change(waiting, ask=True)


def test_another_version_is_shown_with_what_followed_it(talk: Conversation) -> None:
    edited = actions.edit(talk, turn_id(talk, "one"), "first").conversation
    asked = actions.act(edited, "show", turn_id(talk, "one"))
    assert texts(asked.conversation) == ["one", "ONE", "two", "TWO"]
    assert not asked.ask


def test_a_branch_is_a_conversation_of_its_own(talk: Conversation) -> None:
    asked = actions.act(talk, "branch", turn_id(talk, "ONE"))
    assert texts(asked.conversation) == ["one", "ONE"]
    assert asked.conversation.id != talk.id
    assert not asked.ask


def test_a_vote_is_given_changed_and_taken_back(talk: Conversation) -> None:
    answer = turn_id(talk, "ONE")
    votes = []
    for action in ("up", "down", "down"):
        talk = actions.act(talk, action, answer).conversation
        votes.append(talk.turns[answer].vote)
    assert votes == ["up", "down", ""]


@pytest.mark.parametrize(("action", "turn"), [("retry", "gone"), ("fly", None)])
def test_what_is_not_there_is_refused(talk: Conversation, action: str, turn: str | None) -> None:
    with pytest.raises(InvalidRequestError):
        actions.act(talk, action, turn or turn_id(talk, "ONE"))


@pytest.mark.parametrize(("reason", "goes"), [("length", True), ("stopped", True), ("stop", False)])
def test_the_last_answer_goes_on_where_it_was_cut(talk: Conversation, reason: str, goes: bool) -> None:
    made = {"finish_reason": reason, "token_ids": [1, 2]}
    for name in ("ONE", "TWO"):
        talk = conversations.change(talk, turn_id(talk, name), made=made)
    assert not actions.can_go_on(talk, talk.turns[turn_id(talk, "ONE")])
    last = turn_id(talk, "TWO")
    assert actions.can_go_on(talk, talk.turns[last]) == goes
    if goes:
        asked = actions.act(talk, "go", last, made)
        assert (texts(asked.conversation), asked.ask, asked.begun) == (["one", "ONE", "two"], True, made)
    with pytest.raises(InvalidRequestError, match="cannot go on"):
        actions.act(talk, "go", last, None)
