"""Tests that exported conversations can be imported, and that corrupt files raise."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from granite_demo.chat import export
from granite_demo.chat.conversation import Conversation, Turn, add, dump, path, start
from granite_demo.chat.export import MAX_FILE_CHARACTERS, read, to_markdown
from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import Document, ToolCall

TRICKY = [
    "## User",
    "## Document: x",
    "\\## User",
    "\\\\## Assistant ",
    "</details>",
    "</details>x",
    "<details><summary>Thinking</summary>",
    "**Tool call:** f",
    "**Tool call:** f — unreadable: x",
    "```",
    "````json",
    "# Title",
    "<!-- granite-demo conversation 1 -->",
    "",
    "  indented",
    "\u2028",
]
LINES = st.sampled_from(TRICKY) | st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=15)
TEXTS = st.lists(LINES, max_size=6).map(lambda lines: "\n".join(lines).strip("\n"))
NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=8)
CALLS = st.lists(st.builds(ToolCall, name=NAMES, arguments=TEXTS, error=NAMES), max_size=2).map(tuple)


def sample() -> Conversation:
    """Return a conversation with all kinds of content, and with an older version of the answer."""
    documents = (Document(title="Facts", text="# Not a heading\n```\ncode\n```"),)
    conversation = start(system="Be brief.", documents=documents, tools='[{"name": "weather"}]')
    conversation = add(conversation, "user", content="Weather in Rome?")
    question = str(conversation.head)
    conversation = add(conversation, "assistant", content="I do not know.")
    call = ToolCall(name="weather", arguments='{"city": "Rome"}')
    conversation = add(conversation, "assistant", thinking="I need a tool.", calls=(call,), parent=question)
    conversation = add(conversation, "tool", content="sunny", name="weather")
    return add(conversation, "assistant", content="It is **sunny**.", note="12 tokens", vote="up")


def essence(conversation: Conversation) -> list[tuple[Any, ...]]:
    """Return the values that Markdown keeps of the branch that is shown."""
    return [(turn.role, turn.content, turn.thinking, turn.calls, turn.name) for turn in path(conversation)]


def as_json(conversation: Conversation, **changes: Any) -> str:
    return json.dumps({**dump(conversation), **changes})


def test_json_keeps_everything() -> None:
    conversation = sample()
    assert read(as_json(conversation), "one.json") == [conversation]


def test_a_file_with_several_conversations() -> None:
    several = [sample(), sample(), start(system="Only a system prompt.")]
    text = json.dumps({"format": "granite-demo", "conversations": [dump(one) for one in several]})
    assert read(text, "all.json") == several


def test_a_byte_order_mark_and_windows_line_ends_are_accepted() -> None:
    assert len(read("\ufeff" + as_json(sample()), "x.json")) == 1
    (conversation,) = read("\ufeff" + to_markdown(sample()).replace("\n", "\r\n"), "x.md")
    assert essence(conversation) == essence(sample())


def test_ids_that_look_like_numbers_are_replaced() -> None:
    # A browser sorts "1" before its parent "2".
    turns = {"2": Turn(id="2", role="user", content="a"), "1": Turn(id="1", parent="2", role="assistant", content="b")}
    (conversation,) = read(as_json(start(turns=turns, head="1"), id="__proto__"), "x.json")
    assert [turn.content for turn in path(conversation)] == ["a", "b"]
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in (conversation.id, *conversation.turns))


def test_the_markdown_of_a_conversation() -> None:
    assert to_markdown(sample()) == (
        "# Weather in Rome?\n\n<!-- granite-demo conversation 1 -->\n\n*1 message of other versions left out.*\n\n"
        "## System prompt\n\nBe brief.\n\n"
        '## Tools\n\n```json\n[{"name": "weather"}]\n```\n\n'
        "## Document: Facts\n\n````\n# Not a heading\n```\ncode\n```\n````\n\n"
        "## User\n\nWeather in Rome?\n\n"
        "## Assistant\n\n<details><summary>Thinking</summary>\n\nI need a tool.\n\n</details>\n\n"
        '**Tool call:** weather\n\n```json\n{"city": "Rome"}\n```\n\n'
        "## Tool result: weather\n\n```\nsunny\n```\n\n"
        "## Assistant\n\nIt is **sunny**.\n"
    )


def test_markdown_is_imported_as_the_branch_that_is_shown() -> None:
    conversation = sample()
    (again,) = read(to_markdown(conversation), "x.md")
    assert essence(again) == essence(conversation)
    assert again.title == "Weather in Rome?"
    assert again.id != conversation.id
    for name in ("system", "documents", "tools"):
        assert getattr(again, name) == getattr(conversation, name)


def test_markdown_is_recognized_by_its_marker_in_a_file_of_any_name() -> None:
    assert essence(read(to_markdown(sample()), "notes.txt")[0]) == essence(sample())


@settings(deadline=None)
@given(data=st.data())
def test_any_text_survives_markdown(data: st.DataObject) -> None:
    titles = st.builds(Document, title=NAMES, text=TEXTS)
    conversation = start(system=data.draw(TEXTS), documents=tuple(data.draw(st.lists(titles, max_size=2))))
    for _ in range(data.draw(st.integers(1, 4))):
        role: Any = data.draw(st.sampled_from(["user", "assistant", "tool"]))
        values: dict[str, Any] = {"content": data.draw(TEXTS)}
        if role == "assistant":
            values |= {"thinking": data.draw(TEXTS), "calls": data.draw(CALLS)}
        if role == "tool":
            values["name"] = data.draw(NAMES)
        conversation = add(conversation, role, **values)
    (again,) = read(to_markdown(conversation), "x.md")
    assert essence(again) == essence(conversation)
    assert (again.system, again.documents) == (conversation.system, conversation.documents)


def test_a_list_of_messages_is_read() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}, {"type": "image_url"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        {"role": "assistant", "content": "Sunny."},
    ]
    (conversation,) = read(json.dumps(messages), "x.json")
    assert conversation.system == "Be brief."
    assert essence(conversation) == [
        ("user", "Weather?\n\n", "", (), ""),
        ("assistant", "", "", (ToolCall(name="weather", arguments="{}"),), ""),
        ("tool", "sunny", "", (), "weather"),
        ("assistant", "Sunny.", "", (), ""),
    ]
    assert essence(read(json.dumps({"model": "x", "messages": messages}), "x.json")[0]) == essence(conversation)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "x.json", "not valid JSON"),
        (as_json(sample())[:-40], "x.json", "is incomplete"),
        ("<html><body>hello</body></html>", "x.json", "not valid JSON"),
        ("\x00\x01PNG", "x.json", "not valid JSON"),
        ("[" * 100_000, "x.json", "not valid JSON"),
        ('{"a":' * 100_000, "x.json", "not valid JSON"),
        (" " * (MAX_FILE_CHARACTERS + 1), "x.json", "larger than 20 MB"),
        ("5", "x.json", "not a conversation of granite-demo"),
        ("null", "x.json", "not a conversation of granite-demo"),
        ("{}", "x.json", "not a conversation of granite-demo"),
        ('{"id": "a", "name": "foreign"}', "x.json", "not a conversation of granite-demo"),
        ('{"version": 1, "id": "a"}', "x.json", "is empty"),
        (as_json(sample(), version=2), "x.json", "another version"),
        (as_json(sample(), turns=5), "x.json", "turns"),
        (as_json(sample(), head="missing"), "x.json", "does not exist"),
        (as_json(sample(), updated=float("nan")), "x.json", "finite number"),
        (as_json(sample(), title="lone \ud800"), "x.json", "not valid JSON"),
        (
            json.dumps({"version": 1, "id": "a", "turns": {"a": {"id": "a", "parent": "a", "role": "user"}}}),
            "x.json",
            "is not connected to the tree",
        ),
        ('{"format": "granite-demo"}', "x.json", "1 to 5000 conversations"),
        ('{"format": "granite-demo", "conversations": []}', "x.json", "1 to 5000 conversations"),
        (json.dumps({"format": "granite-demo", "conversations": [dump(sample()), 5]}), "x.json", "not a conversation"),
        ("[]", "x.json", "list of messages in the file is empty"),
        ("[1]", "x.json", "Entry 1"),
        ('[{"role": "wizard", "content": "x"}]', "x.json", "Entry 1"),
        ('[{"role": ["user"], "content": "x"}]', "x.json", "Entry 1"),
        ('[{"role": "user", "content": 5}]', "x.json", "not text"),
        ('[{"role": "assistant", "tool_calls": [5]}]', "x.json", "has no function"),
        (json.dumps([{"role": "user"}] * 5000), "x.json", "turns"),
        (json.dumps([{"role": "user", "content": "x" * 2_000_001}]), "x.json", "is not valid"),
        ("# Notes\n\n## User\n\nhello", "x.md", "not exported by granite-demo"),
        ("", "x.md", "not exported by granite-demo"),
        ("# Empty\n\n<!-- granite-demo conversation 1 -->\n", "x.md", "is empty"),
        (to_markdown(sample()).partition("I need")[0], "x.md", "thinking block"),
        (to_markdown(sample()).partition("sunny")[0], "x.md", "code block"),
        (to_markdown(sample()).partition("code")[0], "x.md", "code block"),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_a_corrupt_file_raises(text: str, name: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(message)):
        read(text, name)


@given(text=st.text(), cut=st.integers(0, 900), name=st.sampled_from(["x.json", "x.md"]))
def test_any_file_is_read_or_raises(text: str, cut: int, name: str) -> None:
    for data in (text, export.MARKDOWN_MARK + text, to_markdown(sample())[:cut] + text, as_json(sample())[:cut] + text):
        try:
            found = read(data, name)
        except InvalidRequestError:
            continue
        for conversation in found:
            json.dumps(dump(conversation)).encode()
