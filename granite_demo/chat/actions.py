"""Pure functions that change a conversation: for a question, and for each button under a message."""

from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation, Turn
from granite_demo.errors import InvalidRequestError

INTERRUPTED_NOTE = " · interrupted"
"""The end of the note of an answer that is only a part."""


@dataclass(frozen=True, slots=True)
class Change:
    """A changed conversation. If ``ask``, the model must answer its last turn."""

    conversation: Conversation
    ask: bool = False
    begun: dict[str, Any] | None = None
    """The record of the answer to continue, or None; see ``conversation.Turn.made``. Without one, its ``text``."""


def send(conversation: Conversation, text: str | None) -> Change:
    """Add the question ``text``. An empty text changes nothing."""
    if not text or not text.strip():
        return Change(conversation)
    return Change(conversations.add(conversation, "user", content=text), ask=True)


def edit(conversation: Conversation, turn_id: str, text: str | None) -> Change:
    """Add another version of a message.

    After a new version of a question or of a tool result, the model must answer again; the results of the other tools
    are copied. An edited answer gets no new answer. Raises InvalidRequestError if the text is empty.
    """
    turn = conversations.find(conversation, turn_id)
    if not text or not text.strip():
        raise InvalidRequestError("The message is empty. Write something, or cancel.")
    if turn.content == text and turn.role == "assistant":
        return Change(conversations.show(conversation, turn_id))
    if turn.role == "user":
        return Change(conversations.add(conversation, "user", content=text, parent=turn.parent), ask=True)
    if turn.role == "tool":
        shown = conversations.path(conversation)
        after = shown[shown.index(turn) + 1 :] if turn in shown else []
        edited = conversations.add(conversation, "tool", content=text, name=turn.name, parent=turn.parent)
        for other in takewhile(lambda other: other.role == "tool", after):
            edited = conversations.add(edited, "tool", content=other.content, name=other.name)
        return Change(edited, ask=True)
    return Change(conversations.add(conversation, turn.role, **_rewritten(turn, text)))


def _rewritten(turn: Turn, text: str) -> dict[str, Any]:
    """Return the values of an edited answer, without its figures and without citations of removed text."""
    cites = []
    for cite in turn.citations:
        at = text.find(turn.content[cite.start : cite.end]) if cite.start < cite.end else -1
        if at >= 0:
            cites.append(replace(cite, start=at, end=at + cite.end - cite.start))
        elif cite.start == cite.end and text.startswith(turn.content[: cite.start]):
            cites.append(cite)
    kept = turn.model_dump(exclude={"id", "role", "made", "vote", "kind"})
    return {**kept, "content": text, "citations": cites, "note": "edited"}


def is_interrupted(turn: Turn) -> bool:
    """Return whether only a part of this answer reached the browser, because the connection or the server was lost."""
    return not turn.made and turn.note.endswith(INTERRUPTED_NOTE)


def can_continue(conversation: Conversation, turn: Turn) -> bool:
    """Return whether ``turn`` can be continued: it is the last answer, and it was cut.

    Its tokens must be known, or else its text must be all that the model wrote.
    """
    made = turn.made
    if is_interrupted(turn):
        return turn.id == conversation.head and bool(turn.content) and not turn.thinking and not turn.calls
    cut = made.get("finish_reason") in ("length", "stopped") and bool(made.get("tokens") or made.get("token_ids"))
    return turn.id == conversation.head and cut and not turn.calls


def act(conversation: Conversation, action: str, turn_id: str, made: Any = None) -> Change:
    """Apply the button ``action`` under a message: go, retry, show, branch, up or down.

    ``made`` is the record of the answer to continue. Raises InvalidRequestError.
    """
    turn = conversations.find(conversation, turn_id)
    if action == "retry":
        question = turn.parent if turn.role == "assistant" else turn.id
        return Change(conversations.rewind(conversation, question), ask=question is not None)
    if action == "go":
        begun = {"text": turn.content} if is_interrupted(turn) else made
        if not isinstance(begun, dict) or not can_continue(conversation, turn):
            raise InvalidRequestError("This answer cannot be continued. Retry it.")
        return Change(conversations.rewind(conversation, turn.parent), ask=True, begun=begun)
    if action == "show":
        return Change(conversations.show(conversation, turn_id))
    if action == "branch":
        return Change(conversations.branch(conversation, turn_id))
    if action in ("up", "down"):
        vote = "" if turn.vote == action else action
        return Change(conversations.change(conversation, turn_id, vote=vote))
    raise InvalidRequestError(f"The action {action!r} does not exist.")
