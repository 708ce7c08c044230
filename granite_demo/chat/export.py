"""Exports and imports conversations: JSON has all data, Markdown has the branch that is shown.

An imported file is untrusted. Its size is limited, its values are checked, and unsafe ids are replaced.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation, Turn
from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import ToolCall, scrub

EXPORT_FORMAT = "granite-demo"
"""The value of ``format`` in a JSON file with several conversations."""
MAX_FILE_CHARACTERS = 20_000_000
MAX_CONVERSATIONS = 5000

MARKDOWN_MARK = "<!-- granite-demo conversation 1 -->"
"""The marker of a Markdown file that can be imported."""
THINKING_BEGIN, THINKING_END = "<details><summary>Thinking</summary>", "</details>"
_HEADING = re.compile(r"## (System prompt|Tools|User|Assistant|(?:Document|Tool result):.*)")
_CALL = re.compile(r"\*\*Tool call:\*\* ?(.*?)(?: — unreadable: (.*))?")
_STRUCTURE = re.compile(rf"\\*({_HEADING.pattern}|{_CALL.pattern}|{re.escape(THINKING_BEGIN)}|{THINKING_END})\s*")
"""A line with a meaning in this format. In a text, it is escaped with one more backslash."""
_OUR_ID = re.compile(r"[0-9a-f]{16}")


def read(text: str, name: str) -> list[Conversation]:
    """Parse the conversations in a file.

    The suffix of ``name`` selects Markdown or JSON. Raises InvalidRequestError.
    """
    if len(text) > MAX_FILE_CHARACTERS:
        raise InvalidRequestError(f"The file is larger than {MAX_FILE_CHARACTERS // 1_000_000} MB.")
    text = scrub(text).removeprefix("\ufeff").replace("\r\n", "\n")
    if name.lower().endswith((".md", ".markdown")) or MARKDOWN_MARK in text[:1000]:
        return [_from_markdown(text)]
    return [_with_our_ids(conversation) for conversation in _from_json(text)]


def _from_json(text: str) -> list[Conversation]:
    try:
        # Unlike the json module, this parser limits the depth and rejects lone surrogates.
        value = TypeAdapter(Any).validate_json(text)
    except ValidationError as error:
        [first] = error.errors(include_url=False, include_input=False)
        raise InvalidRequestError(f"The file is not valid JSON, or it is incomplete ({first['msg']}).") from None
    if isinstance(value, dict) and value.get("format") == EXPORT_FORMAT:
        found = value.get("conversations")
        if not isinstance(found, list) or not 0 < len(found) <= MAX_CONVERSATIONS:
            raise InvalidRequestError(f"The file must contain 1 to {MAX_CONVERSATIONS} conversations.")
        return [_one(item) for item in found]
    messages = value.get("messages") if isinstance(value, dict) and "turns" not in value else value
    return [_from_messages(messages)] if isinstance(messages, list) else [_one(value)]


def _one(value: Any) -> Conversation:
    if not isinstance(value, dict) or "version" not in value or "id" not in value:
        raise InvalidRequestError("The file is JSON, but not a conversation of granite-demo.")
    if value["version"] != 1:
        raise InvalidRequestError("The file is from another version of granite-demo.")
    conversation = conversations.load(value)
    if not (conversation.turns or conversation.system or conversation.documents or conversation.tools):
        raise InvalidRequestError("The conversation in the file is empty.")
    return conversation


def _with_our_ids(conversation: Conversation) -> Conversation:
    """Replace ids from other programs, because a browser sorts keys that look like numbers before all others."""
    new = {old: old if _OUR_ID.fullmatch(old) else conversations.new_id() for old in conversation.turns}
    turns = [
        turn.model_copy(update={"id": new[turn.id], "parent": turn.parent and new[turn.parent]})
        for turn in conversation.turns.values()
    ]
    own = conversation.id if _OUR_ID.fullmatch(conversation.id) else conversations.new_id()
    head = conversation.head and new[conversation.head]
    return conversation.model_copy(update={"id": own, "head": head, "turns": {turn.id: turn for turn in turns}})


def _from_messages(messages: list[Any]) -> Conversation:
    """Convert a list of messages in the format of OpenAI."""
    conversation = conversations.start()
    system: list[str] = []
    called: dict[str, str] = {}
    for number, message in enumerate(messages, 1):
        role: Any = message.get("role") if isinstance(message, dict) else None
        if role in ("system", "developer"):
            system.append(_content(message))
        elif role in ("user", "assistant", "tool"):
            calls = _calls(message, called) if role == "assistant" else ()
            name = called.get(str(message.get("tool_call_id")), "") if role == "tool" else ""
            conversation = conversations.add(conversation, role, content=_content(message), calls=calls, name=name)
        else:
            raise InvalidRequestError(f"Entry {number} of the list in the file is not a message with a known role.")
    if not conversation.turns:
        raise InvalidRequestError("The list of messages in the file is empty.")
    return conversations.load({**conversations.dump(conversation), "system": "\n\n".join(system)})


def _content(message: Mapping[str, Any]) -> str:
    """Return the text of a message. Its content can be a text or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        content = "\n\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if content is not None and not isinstance(content, str):
        raise InvalidRequestError("The content of a message in the file is not text.")
    return content or ""


def _calls(message: Mapping[str, Any], called: dict[str, str]) -> tuple[ToolCall, ...]:
    calls = []
    listed = message.get("tool_calls")
    for item in listed if isinstance(listed, list) else ():
        function = item.get("function") if isinstance(item, dict) else None
        if not isinstance(function, dict):
            raise InvalidRequestError("A tool call in the file has no function.")
        calls.append(ToolCall(name=str(function.get("name", "")), arguments=str(function.get("arguments", "{}"))))
        called[str(item.get("id"))] = calls[-1].name
    return tuple(calls)


def to_markdown(conversation: Conversation) -> str:
    """Return the branch that is shown as Markdown. A line gives the number of messages in other versions."""
    shown = conversations.path(conversation)
    parts = [f"# {_line(conversations.title_of(conversation)) or 'Conversation'}", MARKDOWN_MARK]
    if left := len(conversation.turns) - len(shown):
        parts.append(f"*{left} {'message' if left == 1 else 'messages'} of other versions left out.*")
    if conversation.system:
        parts += ["## System prompt", _escaped(conversation.system)]
    if conversation.tools:
        parts += ["## Tools", _fenced(conversation.tools, "json")]
    for document in conversation.documents:
        parts += [f"## Document: {_line(document.title)}", _fenced(document.text)]
    for turn in shown:
        parts += _turn_parts(turn)
    return "\n\n".join(parts) + "\n"


def _turn_parts(turn: Turn) -> list[str]:
    if turn.role == "tool":
        return [f"## Tool result: {_line(turn.name)}", _fenced(turn.content)]
    parts = [f"## {turn.role.capitalize()}"]
    if turn.thinking:
        parts += [THINKING_BEGIN, _escaped(turn.thinking), THINKING_END]
    if turn.content:
        parts.append(_escaped(turn.content))
    for call in turn.calls:
        error = f" — unreadable: {_line(call.error)}" if call.error else ""
        parts += [f"**Tool call:** {_line(call.name)}{error}", _fenced(call.arguments, "json")]
    return parts


def _line(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    return "\n".join(f"\\{line}" if _STRUCTURE.fullmatch(line) else line for line in text.split("\n"))


def _plain(text: str) -> str:
    return "\n".join(map(_without_mark, text.strip("\n").split("\n")))


def _without_mark(line: str) -> str:
    return line[1:] if line.startswith("\\") and _STRUCTURE.fullmatch(line) else line


def _fenced(text: str, language: str = "") -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{_escaped(text)}\n{fence}"


def _unfenced(text: str) -> str:
    lines = text.strip("\n").split("\n")
    fence = lines[0][: len(lines[0]) - len(lines[0].lstrip("`"))]
    if len(lines) < 3 or len(fence) < 3 or lines[-1].rstrip() != fence:
        raise InvalidRequestError("A code block in the file is not closed. The file is incomplete or was changed.")
    return "\n".join(map(_without_mark, lines[1:-1]))


def _from_markdown(text: str) -> Conversation:
    head, *sections = _split(text, _HEADING)
    if MARKDOWN_MARK not in head:
        raise InvalidRequestError(
            "This Markdown file was not exported by granite-demo, so it cannot be imported. Use another file, or JSON."
        )
    title = head.lstrip().split("\n", 1)[0].removeprefix("# ").strip()
    conversation = conversations.start()
    values: dict[str, Any] = {"title": title[:200], "documents": []}
    for section in sections:
        heading, _, body = section.partition("\n")
        kind, _, name = heading.removeprefix("## ").strip().partition(": ")
        if kind == "System prompt":
            values["system"] = _plain(body)
        elif kind == "Tools":
            values["tools"] = _unfenced(body)
        elif kind.startswith("Document"):
            values["documents"].append({"title": name, "text": _unfenced(body)})
        elif kind.startswith("Tool result"):
            conversation = conversations.add(conversation, "tool", content=_unfenced(body), name=name)
        elif kind == "User":
            conversation = conversations.add(conversation, "user", content=_plain(body))
        else:
            conversation = conversations.add(conversation, "assistant", **_answer(body))
    if not sections:
        raise InvalidRequestError("The conversation in the file is empty.")
    return conversations.load({**conversations.dump(conversation), **values})


def _answer(body: str) -> dict[str, Any]:
    thinking = ""
    body = body.strip("\n")
    if body.split("\n", 1)[0].rstrip() == THINKING_BEGIN:
        thinking, *rest = _split(body.partition("\n")[2], re.compile(THINKING_END))
        if not rest:
            raise InvalidRequestError("A thinking block in the file is not closed. The file is incomplete.")
        body = rest[0].partition("\n")[2]
    content, *blocks = _split(body, _CALL)
    return {"content": _plain(content), "thinking": _plain(thinking), "calls": tuple(map(_call, blocks))}


def _call(block: str) -> ToolCall:
    line, _, rest = block.partition("\n")
    found = _CALL.fullmatch(line.rstrip())
    name, error = found.groups() if found else ("", "")
    return ToolCall(name=name, arguments=_unfenced(rest), error=error or "")


def _split(text: str, opening: re.Pattern[str]) -> list[str]:
    """Split the text before each line that ``opening`` matches. The first part is the text before the first match."""
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        if opening.fullmatch(line.rstrip()):
            parts.append([])
        parts[-1].append(line)
    return ["\n".join(lines) for lines in parts]
