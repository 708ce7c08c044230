"""What a question, and each button under a message, does to a conversation. Pure functions."""

from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation, Turn
from granite_demo.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Change:
    """A changed conversation. With ``ask``, the model answers its last turn."""

    conversation: Conversation
    ask: bool = False
    begun: dict[str, Any] | None = None
    """What made the answer to continue, if there is one; see ``conversations.Turn.made``."""


def send(conversation: Conversation, text: str | None) -> Change:
    """Ask ``text``. An empty text changes nothing."""
    if not text or not text.strip():
        return Change(conversation)
    return Change(conversations.add(conversation, "user", content=text), ask=True)


def edit(conversation: Conversation, turn_id: str, text: str | None) -> Change:
    """Put another version beside a message.

    The model answers a question or the result of a tool again, with the results of the other tools; an answer stays as
    it is written. Raises InvalidRequestError.
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
    """The values of another version of an answer, without its figures and without citations of text that is gone."""
    cites = []
    for cite in turn.citations:
        at = text.find(turn.content[cite.start : cite.end]) if cite.start < cite.end else -1
        if at >= 0:
            cites.append(replace(cite, start=at, end=at + cite.end - cite.start))
        elif cite.start == cite.end and text.startswith(turn.content[: cite.start]):
            cites.append(cite)
    kept = turn.model_dump(exclude={"id", "role", "made", "vote", "kind"})
    return {**kept, "content": text, "citations": cites, "note": "edited"}


def can_go_on(conversation: Conversation, turn: Turn) -> bool:
    """Whether ``turn`` is the last answer and was cut, and its tokens are known."""
    made = turn.made
    cut = made.get("finish_reason") in ("length", "stopped") and bool(made.get("tokens") or made.get("token_ids"))
    return turn.id == conversation.head and cut and not turn.calls


def act(conversation: Conversation, action: str, turn_id: str, made: Any = None) -> Change:
    """What a button under a message does: go, retry, show, branch, up or down. Raises InvalidRequestError.

    ``made`` is what made the answer to continue.
    """
    turn = conversations.find(conversation, turn_id)
    if action == "retry":
        question = turn.parent if turn.role == "assistant" else turn.id
        return Change(conversations.rewind(conversation, question), ask=question is not None)
    if action == "go":
        if not isinstance(made, dict) or not can_go_on(conversation, turn):
            raise InvalidRequestError("This answer cannot go on. Retry it.")
        return Change(conversations.rewind(conversation, turn.parent), ask=True, begun=made)
    if action == "show":
        return Change(conversations.show(conversation, turn_id))
    if action == "branch":
        return Change(conversations.branch(conversation, turn_id))
    if action in ("up", "down"):
        vote = "" if turn.vote == action else action
        return Change(conversations.change(conversation, turn_id, vote=vote))
    raise InvalidRequestError(f"There is no action {action!r}.")
