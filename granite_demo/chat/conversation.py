"""A conversation as a tree of turns, so that nothing said is ever lost. Pure functions; knows no page and no model.

Editing or retrying adds a turn beside the old one; ``head`` names the last turn of the branch that is shown. The
visitor's browser keeps conversations as the JSON of ``dump``; what comes back is checked by ``load``.
"""

import secrets
import time
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from granite_demo.errors import InvalidRequestError
from granite_demo.types.events import Appendix, Citation
from granite_demo.types.messages import Controls, Document, Message, ToolCall
from granite_demo.types.requests import Overflow

MAX_TURNS = 4000
READABLE_TURNS = 2 * MAX_TURNS
"""Two tabs may each have filled a conversation; what is stored can always be opened."""
MAX_CITATIONS = 500
MAX_TEXT = 2_000_000
"""Characters of one text."""
TITLE_LENGTH = 60

Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", str_max_length=MAX_TEXT, allow_inf_nan=False)


def _in_text(citation: Citation) -> Citation:
    if citation.start < 0 or citation.end < 0:
        raise ValueError("a citation begins before the text")
    return citation


class SentDocument(_Part):
    """A document that an answer was given, by a digest of its text: it may be removed since."""

    title: str
    digest: str


class Turn(_Part):
    """One message in the tree: a question, an answer with all that belongs to it, or a tool's result."""

    id: Id
    parent: str | None = None
    role: Literal["user", "assistant", "tool"]
    content: str = ""
    thinking: str = ""
    thinking_tokens: int = 0
    thinking_seconds: float = 0.0
    calls: tuple[ToolCall, ...] = ()
    name: str = ""
    """The tool whose result this is."""
    citations: tuple[Annotated[Citation, AfterValidator(_in_text)], ...] = Field(default=(), max_length=MAX_CITATIONS)
    sent: tuple[SentDocument, ...] = Field(default=(), max_length=64)
    """The documents that the citations count from; none with the answers of earlier versions."""
    appendices: tuple[Appendix, ...] = ()
    note: str = ""
    """The line under an answer: its figures, or the error that ended it."""
    kind: Literal["note", "error"] = "note"
    vote: Literal["", "up", "down"] = ""
    made: dict[str, Any] = Field(default_factory=dict)
    """What is needed to make the answer again; see ``bundle``. The browser keeps it, and sends a mark in its place."""


class Conversation(_Part):
    """All turns, which branch is shown, and what every request of the conversation carries."""

    version: Literal[1] = 1
    id: Id = Field(default_factory=lambda: new_id())
    title: str = Field(default="", max_length=200)
    """Given by the visitor; empty: taken from the first question."""
    created: float = 0.0
    updated: float = 0.0
    """Seconds since 1970."""
    head: str | None = None
    turns: dict[str, Turn] = Field(default_factory=dict)
    """By id, in the order in which they came to be."""
    system: str = ""
    documents: tuple[Document, ...] = Field(default=(), max_length=64)
    tools: str = ""
    """JSON text of the tools' definitions, as the visitor wrote it."""
    controls: Controls = Controls()
    overflow: Overflow = "refuse"

    @model_validator(mode="after")
    def _is_a_tree(self) -> "Conversation":
        if len(self.turns) > READABLE_TURNS:
            raise ValueError(f"it has {len(self.turns)} turns, more than {READABLE_TURNS}")
        seen: set[str | None] = {None}
        for name, turn in self.turns.items():
            # A parent always comes before its children, so there can be no circle.
            if name != turn.id or turn.parent not in seen:
                raise ValueError(f"turn {name!r} has no place in the tree")
            seen.add(name)
        if self.head not in seen:
            raise ValueError("the turn that is shown does not exist")
        return self


def new_id() -> str:
    """An id for a turn or a conversation."""
    return secrets.token_hex(8)


def start(**values: Any) -> Conversation:
    """An empty conversation with ``values`` for its fields."""
    now = time.time()
    return Conversation(id=new_id(), created=now, updated=now, **values)


def load(value: Any) -> Conversation:
    """The conversation that the browser sent. Raises InvalidRequestError for what is none.

    One that was only just begun may lack everything, its id too.
    """
    try:
        conversation = Conversation.model_validate(value or {})
    except ValidationError as error:
        raise InvalidRequestError(
            f"This is not a conversation that granite-demo can read ({_reason(error)})."
        ) from None
    return conversation if conversation.created else conversation.model_copy(update={"created": time.time()})


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def dump(conversation: Conversation) -> dict[str, Any]:
    """The conversation as the browser keeps it: defaults are left out."""
    value = conversation.model_dump(mode="json", exclude_defaults=True)
    return {"version": conversation.version, **value}


def patch(before: Conversation, after: Conversation) -> dict[str, Any]:
    """What makes the browser's copy of ``before`` the conversation ``after``: new and changed turns, and the head.

    The browser's copy may have changed since in all else, so a patch has nothing of it. A conversation under another
    id, a branch, is whole; ``from`` is the id of the conversation in whose place it is shown.
    """
    if after.id != before.id:
        return {**dump(after), "from": before.id}
    turns = {name: turn for name, turn in after.turns.items() if before.turns.get(name) is not turn}
    news = Conversation.model_construct(id=after.id, created=after.created, updated=after.updated, turns=turns)
    return {**dump(news), "head": after.head}


def path(conversation: Conversation) -> list[Turn]:
    """The turns of the branch that is shown, the first one first."""
    turns = []
    at = conversation.head
    while at is not None:
        turns.append(conversation.turns[at])
        at = turns[-1].parent
    return turns[::-1]


def add(conversation: Conversation, role: Literal["user", "assistant", "tool"], **values: Any) -> Conversation:
    """Append a turn to the branch that is shown. ``parent`` in ``values`` puts it elsewhere: a version of another."""
    values.setdefault("parent", conversation.head)
    return put(conversation, _turn({"id": new_id(), "role": role, **values}))


def put(conversation: Conversation, turn: Turn) -> Conversation:
    """Add ``turn`` after its parent, and show it. Raises InvalidRequestError."""
    if turn.parent is not None:
        find(conversation, turn.parent)
    turns = {**conversation.turns, turn.id: turn}
    return _checked(conversation, turns=turns, head=turn.id, updated=time.time())


def change(conversation: Conversation, turn_id: str, **values: Any) -> Conversation:
    """Give fields of one turn other values."""
    turn = _turn({**find(conversation, turn_id).model_dump(), **values})
    return _checked(conversation, turns={**conversation.turns, turn_id: turn}, updated=time.time())


def _turn(values: dict[str, Any]) -> Turn:
    try:
        return Turn.model_validate(values)
    except ValidationError as error:
        raise InvalidRequestError(f"This message cannot be kept ({_reason(error)}).") from None


def _checked(conversation: Conversation, **values: Any) -> Conversation:
    if len(values.get("turns", ())) > MAX_TURNS:
        raise InvalidRequestError(f"This conversation has {MAX_TURNS:,} turns. Start a new one.")
    return conversation.model_copy(update=values)


def find(conversation: Conversation, turn_id: str) -> Turn:
    """The turn with this id. Raises InvalidRequestError."""
    if turn_id not in conversation.turns:
        raise InvalidRequestError("That message is no longer part of the conversation.")
    return conversation.turns[turn_id]


def versions(conversation: Conversation, turn_id: str) -> list[str]:
    """The ids of the turns that stand in the same place, this one among them, oldest first."""
    turn = find(conversation, turn_id)
    return [other.id for other in conversation.turns.values() if (other.parent, other.role) == (turn.parent, turn.role)]


def show(conversation: Conversation, turn_id: str) -> Conversation:
    """Show the branch through this turn, as far as it was last continued."""
    at = find(conversation, turn_id).id
    newest = {turn.parent: turn.id for turn in conversation.turns.values()}
    while at in newest:
        at = newest[at]
    return conversation.model_copy(update={"head": at})


def rewind(conversation: Conversation, turn_id: str | None) -> Conversation:
    """Show the branch up to this turn and no further; the rest stays in the tree."""
    if turn_id is not None:
        find(conversation, turn_id)
    return conversation.model_copy(update={"head": turn_id})


def unanswered(conversation: Conversation) -> Conversation:
    """The branch that is shown up to the last turn that asks for an answer."""
    asking = [turn.id for turn in path(conversation) if turn.role != "assistant"]
    return rewind(conversation, asking[-1] if asking else None)


def branch(conversation: Conversation, turn_id: str) -> Conversation:
    """A new conversation with a copy of all that led to this turn."""
    turns = {turn.id: turn for turn in path(rewind(conversation, turn_id))}
    now = time.time()
    title = f"{title_of(conversation)[:TITLE_LENGTH]} (branch)"
    values = {"id": new_id(), "title": title, "created": now, "updated": now, "turns": turns, "head": turn_id}
    return conversation.model_copy(update=values)


def title_of(conversation: Conversation) -> str:
    """What to call the conversation in a list."""
    if conversation.title:
        return conversation.title
    question = next((turn.content for turn in conversation.turns.values() if turn.role == "user"), "")
    line = " ".join(question.split())
    return line if len(line) <= TITLE_LENGTH else f"{line[: TITLE_LENGTH - 1]}…"


def to_messages(conversation: Conversation) -> tuple[Message, ...]:
    """The branch that is shown, to send. Answers without text and calls, which an error left behind, are skipped."""
    system = [Message("system", conversation.system.strip())] if conversation.system.strip() else []
    turns = [turn for turn in path(conversation) if turn.role != "assistant" or turn.content or turn.calls]
    return (*system, *(_to_message(turn) for turn in turns))


def _to_message(turn: Turn) -> Message:
    calls = tuple(call for call in turn.calls if not call.error)
    # What could not be read as a call is text: the model sees what it wrote.
    broken = [call.arguments for call in turn.calls if call.error]
    return Message(turn.role, "\n".join(filter(None, [turn.content, *broken])), turn.thinking, calls, turn.name)
