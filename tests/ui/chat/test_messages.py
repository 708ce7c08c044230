"""Turns as the chatbot's messages, without a page."""

import re
from typing import Any

import pytest

from granite_demo.chat import conversation as conversations
from granite_demo.chat.answer import Answer
from granite_demo.chat.conversation import Conversation
from granite_demo.types.events import Appendix, Citation
from granite_demo.types.messages import Document, ToolCall
from granite_demo.ui.chat import messages as messages_module
from granite_demo.ui.chat.messages import WINDOW, answer_turn, chat_messages, growing_messages
from granite_demo.ui.streaming import Snapshot

EVIL = "<script>alert(1)</script>"


def talk(**answer: Any) -> Conversation:
    conversation = conversations.add(conversations.start(), "user", content="Why?")
    return conversations.add(conversation, "assistant", **{"content": "Because.", **answer})


def parts(message: dict[str, Any]) -> list[str]:
    return [part["text"] for part in message["content"]]


def acts(text: str) -> list[str]:
    return re.findall(r'class="act ([a-z ]+) t-', text)


def shown(conversation: Conversation) -> list[dict[str, Any]]:
    return chat_messages(conversation)[0]


def test_a_question_and_its_answer_with_their_buttons() -> None:
    question, answer = shown(talk(note="3 tokens", made={"seed": 1}))
    assert (question["role"], parts(question)[0], acts(parts(question)[1])) == (
        "user",
        '<div class="said">Why?</div>',
        ["edit", "clip"],
    )
    text, below = parts(answer)
    assert (answer["role"], text) == ("assistant", "Because.")
    assert below.endswith('<div class="note">3 tokens</div></details></div>')
    assert acts(below) == ["clip", "edit", "retry", "branch", "bundle", "up", "down"]


def test_only_an_answer_that_can_be_made_again_has_a_bundle() -> None:
    assert "bundle" not in acts(parts(shown(talk())[1])[1])


def test_an_error_is_shown_as_one_and_escaped() -> None:
    assert (
        f'<div class="error">{EVIL.replace("<", "&lt;").replace(">", "&gt;")}</div>'
        in parts(shown(talk(note=EVIL, kind="error"))[1])[1]
    )


def test_versions_have_arrows_to_their_neighbours() -> None:
    conversation = talk()
    first = conversation.head
    for text in ("2nd", "3rd"):
        conversation = conversations.add(
            conversation, "assistant", content=text, parent=conversation.turns[first or ""].parent
        )
    ids = conversations.versions(conversation, conversation.head or "")
    below = parts(shown(conversations.show(conversation, ids[1]))[1])[1]
    assert f'class="act show older t-{ids[0]}"' in below
    assert '<span class="versions">2/3</span>' in below
    assert f'class="act show newer t-{ids[2]}"' in below
    assert "older" not in parts(shown(conversations.show(conversation, ids[0]))[1])[1]
    assert "newer" not in parts(shown(conversation)[1])[1]


def test_the_vote_that_was_given_is_marked() -> None:
    below = parts(shown(talk(vote="down"))[1])[1]
    assert acts(below)[-2:] == ["up", "down chosen"]


def test_thinking_stands_in_a_part_of_its_own() -> None:
    _, thinking, answer = shown(talk(thinking="Hm.", thinking_tokens=1, thinking_seconds=2.34))
    assert thinking["content"] == "Hm."
    assert thinking["metadata"] == {"title": "Thinking", "log": "1 token", "duration": 2.3, "status": "done"}
    assert parts(answer)[0] == "Because."


def test_growing_thinking_is_open_until_the_answer_begins() -> None:
    def status(**values: Any) -> str:
        conversation = talk(thinking="Hm.", **values)
        [thinking, _] = growing_messages(conversations.path(conversation)[-1])
        return str(thinking["metadata"]["status"])

    assert (status(content=""), status(content="Yes")) == ("pending", "done")


def test_a_growing_answer_has_no_buttons() -> None:
    conversation = talk(note="3 tokens")
    [message] = growing_messages(conversations.path(conversation)[-1])
    assert parts(message) == ["Because.", '<div class="note">3 tokens</div>']


def test_markup_of_ours_has_no_line_breaks_that_markdown_would_read() -> None:
    calls = (ToolCall(name="add", arguments='{\n"a": 1\n}'), ToolCall(name="", arguments="{\n\n# x", error="cut off"))
    lists = (Appendix(kind="citations", text="1: a\n\n# b"),)
    below = parts(shown(talk(calls=calls, appendices=lists))[1])[1]
    assert "\n" not in below
    assert "cut off" in below


def test_cited_text_has_footnotes_once_it_is_whole() -> None:
    conversation = talk(content="The sky is blue.", citations=(Citation(document="1", start=0, end=16),))
    conversation = conversation.model_copy(update={"documents": (Document(title="sky.txt", text="The sky is blue."),)})
    text, below = parts(shown(conversation)[1])
    assert "<sup>" in text
    assert "sky.txt" in below
    [growing] = growing_messages(conversations.path(conversation)[-1])
    assert parts(growing)[0] == "The sky is blue."


def test_a_tools_result_is_a_card() -> None:
    conversation = conversations.add(
        talk(calls=(ToolCall(name="add", arguments="{}"),)), "tool", name="add", content=EVIL
    )
    text, card = parts(shown(conversation)[2])
    assert text == ""
    assert "add" in card
    assert EVIL not in card


def test_a_question_without_an_answer_can_be_asked_again() -> None:
    conversation = conversations.add(talk(), "user", content="And?")
    assert acts(parts(shown(conversation)[-1])[-1]) == ["edit", "clip", "retry again"]
    busy, _ = chat_messages(conversation, busy=True)
    assert acts(parts(busy[-1])[-1]) == ["edit", "clip"]


def test_results_without_an_answer_can_be_asked_again_when_all_are_there() -> None:
    calls = (ToolCall(name="add", arguments="{}"), ToolCall(name="dice", arguments="{}"))
    one = conversations.add(talk(calls=calls), "tool", name="add", content="3")
    assert acts(parts(shown(one)[-1])[-1]) == ["edit", "clip"]
    both = conversations.add(one, "tool", name="dice", content="6")
    assert acts(parts(shown(both)[-1])[-1]) == ["edit", "clip", "retry again"]


@pytest.mark.parametrize(("turns", "hidden"), [(WINDOW, 0), (WINDOW + 2, 2), (200, 200 - WINDOW)])
def test_only_the_last_turns_are_shown_unless_all_are_asked_for(turns: int, hidden: int) -> None:
    conversation = conversations.start()
    for number in range(turns // 2):
        conversation = conversations.add(conversation, "user", content=f"q{number}")
        conversation = conversations.add(conversation, "assistant", content=f"a{number}")
    messages, left_out = chat_messages(conversation)
    assert (len(messages), left_out) == (turns - hidden, hidden)
    assert parts(messages[-1])[0] == f"a{turns // 2 - 1}"
    assert len(chat_messages(conversation, everything=True)[0]) == turns


def test_more_messages_than_a_page_can_show_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = conversations.start()
    for _ in range(10):
        conversation = conversations.add(conversation, "user", content="x" * 100)
    monkeypatch.setattr(messages_module, "MAX_SHOWN_TURNS", 8)
    messages, hidden = chat_messages(conversation, everything=True)
    assert (len(messages), hidden) == (8, 2)
    monkeypatch.setattr(messages_module, "MAX_SCREEN", 350)
    assert chat_messages(conversation)[1] == 7
    monkeypatch.setattr(messages_module, "MAX_SHOWN", 30)
    text = parts(chat_messages(conversation)[0][-1])[0]
    assert "x" * 30 + "&#10;&#10;… 70 more characters" in text


def test_a_growing_answer_becomes_a_turn_with_all_it_has() -> None:
    answer = Answer("Yes", "Hm", [ToolCall("add", "{}", "bad")], [Citation("1", 0, 3)], [Appendix("citations", "1: a")])
    answer.thinking_tokens, answer.thinking_start, answer.thinking_end = 4, 1.0, 3.0
    turn = answer_turn("t1", None, Snapshot(answer, "a note", "error", 9.0))
    assert (turn.id, turn.role, turn.content, turn.thinking) == ("t1", "assistant", "Yes", "Hm")
    assert (turn.thinking_tokens, turn.thinking_seconds, turn.note, turn.kind) == (4, 2.0, "a note", "error")
    assert turn.calls == (ToolCall(name="add", arguments="{}", error="bad"),)
    assert turn.citations == (Citation(document="1", start=0, end=3),)
    assert turn.appendices == (Appendix(kind="citations", text="1: a"),)
