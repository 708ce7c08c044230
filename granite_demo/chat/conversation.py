"""A conversation as a tree of turns, with pure functions to change it. No turn is ever lost.

An edit or a retry adds a new version of a turn. ``head`` is the last turn of the branch that is shown. The browser
keeps the conversations as the JSON of ``dump``, and ``load`` checks the JSON from the browser.
"""

import secrets
import time
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from granite_demo.chat.documents import check
from granite_demo.errors import InvalidRequestError
from granite_demo.types.events import Appendix, Citation
from granite_demo.types.messages import Controls, Document, Message, ToolCall
from granite_demo.types.requests import Overflow

MAX_TURNS = 4000
READABLE_TURNS = 2 * MAX_TURNS
"""Two tabs can each fill a conversation, and a stored conversation must be readable."""
MAX_CITATIONS = 500
MAX_TEXT = 2_000_000
"""The limit for the characters of one text."""
TITLE_LENGTH = 60

Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", str_max_length=MAX_TEXT, allow_inf_nan=False)


def _in_text(citation: Citation) -> Citation:
    if citation.start < 0 or citation.end < 0:
        raise ValueError("the citation starts before the text")
    return citation


class SentDocument(_Part):
    """A document of the request of an answer.

    It has a digest of the text, because the document can be removed later.
    """

    title: str
    digest: str


class Turn(_Part):
    """One message in the tree: a question, an answer with its calls, citations and figures, or the result of a tool."""

    id: Id
    parent: str | None = None
    role: Literal["user", "assistant", "tool"]
    content: str = ""
    thinking: str = ""
    thinking_tokens: int = 0
    thinking_seconds: float = 0.0
    calls: tuple[ToolCall, ...] = ()
    name: str = ""
    """The name of the tool, if this is the result of a tool."""
    citations: tuple[Annotated[Citation, AfterValidator(_in_text)], ...] = Field(default=(), max_length=MAX_CITATIONS)
    sent: tuple[SentDocument, ...] = Field(default=(), max_length=64)
    """The documents that the citations refer to. Answers of earlier versions of this program have none."""
    appendices: tuple[Appendix, ...] = ()
    note: str = ""
    """The line under an answer: its figures, or its error."""
    kind: Literal["note", "error"] = "note"
    vote: Literal["", "up", "down"] = ""
    made: dict[str, Any] = Field(default_factory=dict)
    """The record to reproduce the answer; see ``bundle``. The browser keeps it, and sends a placeholder for it."""


class Conversation(_Part):
    """All turns, the branch that is shown, and the values for each request, such as the system prompt."""

    version: Literal[1] = 1
    id: Id = Field(default_factory=lambda: new_id())
    title: str = Field(default="", max_length=200)
    """The title that the visitor chose. Empty: the first question."""
    created: float = 0.0
    updated: float = 0.0
    """Seconds since 1970."""
    head: str | None = None
    turns: dict[str, Turn] = Field(default_factory=dict)
    """The turns by id, in the order of their creation."""
    system: str = ""
    documents: tuple[Document, ...] = Field(default=(), max_length=64)
    tools: str = ""
    """The JSON text of the tool definitions, as the visitor wrote it."""
    controls: Controls = Controls()
    overflow: Overflow = "refuse"

    @model_validator(mode="after")
    def _is_a_tree(self) -> "Conversation":
        if len(self.turns) > READABLE_TURNS:
            raise ValueError(f"it has {len(self.turns)} turns, more than {READABLE_TURNS}")
        seen: set[str | None] = {None}
        for name, turn in self.turns.items():
            # A parent must come before its children, so the tree has no cycles.
            if name != turn.id or turn.parent not in seen:
                raise ValueError(f"turn {name!r} is not connected to the tree")
            seen.add(name)
        if self.head not in seen:
            raise ValueError("the turn that is shown does not exist")
        return self


def new_id() -> str:
    """Return a random id for a turn or a conversation."""
    return secrets.token_hex(8)


def start(**values: Any) -> Conversation:
    """Return an empty conversation with ``values`` for its fields."""
    now = time.time()
    return Conversation(id=new_id(), created=now, updated=now, **values)


def load(value: Any) -> Conversation:
    """Parse the conversation from the browser. Raises InvalidRequestError.

    A new conversation can be empty, without an id.
    """
    try:
        conversation = Conversation.model_validate(value or {})
    except ValidationError as error:
        raise InvalidRequestError(
            f"This is not a conversation that granite-demo can read ({_reason(error)})."
        ) from None
    check(conversation.documents)
    return conversation if conversation.created else conversation.model_copy(update={"created": time.time()})


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def dump(conversation: Conversation) -> dict[str, Any]:
    """Return the conversation as JSON for the browser, without default values."""
    value = conversation.model_dump(mode="json", exclude_defaults=True)
    return {"version": conversation.version, **value}


def patch(before: Conversation, after: Conversation) -> dict[str, Any]:
    """Return the changes that convert the copy ``before`` in the browser to ``after``: changed turns, and the head.

    A patch has no other fields, because they can have changed in the browser. A branch has another id, so its patch is
    the complete conversation, and ``from`` is the id of the conversation that it replaces on the page.
    """
    if after.id != before.id:
        return {**dump(after), "from": before.id}
    turns = {name: turn for name, turn in after.turns.items() if before.turns.get(name) is not turn}
    changed = Conversation.model_construct(id=after.id, created=after.created, updated=after.updated, turns=turns)
    return {**dump(changed), "head": after.head}


def path(conversation: Conversation) -> list[Turn]:
    """Return the turns of the branch that is shown, in order."""
    turns = []
    at = conversation.head
    while at is not None:
        turns.append(conversation.turns[at])
        at = turns[-1].parent
    return turns[::-1]


def add(conversation: Conversation, role: Literal["user", "assistant", "tool"], **values: Any) -> Conversation:
    """Append a turn to the branch that is shown, or to the turn ``parent`` in ``values``.

    Raises InvalidRequestError.
    """
    values.setdefault("parent", conversation.head)
    return put(conversation, _turn({"id": new_id(), "role": role, **values}))


def put(conversation: Conversation, turn: Turn) -> Conversation:
    """Add ``turn`` after its parent, and show it. Raises InvalidRequestError."""
    if turn.parent is not None:
        find(conversation, turn.parent)
    turns = {**conversation.turns, turn.id: turn}
    return _checked(conversation, turns=turns, head=turn.id, updated=time.time())


def change(conversation: Conversation, turn_id: str, **values: Any) -> Conversation:
    """Change fields of one turn. Raises InvalidRequestError."""
    turn = _turn({**find(conversation, turn_id).model_dump(), **values})
    return _checked(conversation, turns={**conversation.turns, turn_id: turn}, updated=time.time())


def _turn(values: dict[str, Any]) -> Turn:
    try:
        return Turn.model_validate(values)
    except ValidationError as error:
        raise InvalidRequestError(f"This message is not valid ({_reason(error)}).") from None


def _checked(conversation: Conversation, **values: Any) -> Conversation:
    if len(values.get("turns", ())) > MAX_TURNS:
        raise InvalidRequestError(f"This conversation has {MAX_TURNS:,} turns, the limit. Start a new one.")
    return conversation.model_copy(update=values)


def find(conversation: Conversation, turn_id: str) -> Turn:
    """Return the turn with this id. Raises InvalidRequestError."""
    if turn_id not in conversation.turns:
        raise InvalidRequestError("That message is no longer part of the conversation.")
    return conversation.turns[turn_id]


def versions(conversation: Conversation, turn_id: str) -> list[str]:
    """Return the ids of all versions of this turn, including itself, the oldest first."""
    turn = find(conversation, turn_id)
    return [other.id for other in conversation.turns.values() if (other.parent, other.role) == (turn.parent, turn.role)]


Siblings = dict[tuple[str | None, str], list[str]]
"""The ids of the turns with the same parent and role, by both, the oldest first."""


def siblings(conversation: Conversation) -> Siblings:
    """Return the versions of all turns at once: ``versions`` looks at all turns for one."""
    found: Siblings = {}
    for turn in conversation.turns.values():
        found.setdefault((turn.parent, turn.role), []).append(turn.id)
    return found


def show(conversation: Conversation, turn_id: str) -> Conversation:
    """Show the branch through this turn, with its newest continuation."""
    at = find(conversation, turn_id).id
    newest = {turn.parent: turn.id for turn in conversation.turns.values()}
    while at in newest:
        at = newest[at]
    return conversation.model_copy(update={"head": at})


def rewind(conversation: Conversation, turn_id: str | None) -> Conversation:
    """Show the branch up to this turn. The turns after it remain in the tree."""
    if turn_id is not None:
        find(conversation, turn_id)
    return conversation.model_copy(update={"head": turn_id})


def unanswered(conversation: Conversation) -> Conversation:
    """Show the branch up to its last question or tool result."""
    asking = [turn.id for turn in path(conversation) if turn.role != "assistant"]
    return rewind(conversation, asking[-1] if asking else None)


def branch(conversation: Conversation, turn_id: str) -> Conversation:
    """Return a new conversation with a copy of the branch up to this turn."""
    turns = {turn.id: turn for turn in path(rewind(conversation, turn_id))}
    now = time.time()
    title = f"{title_of(conversation)[:TITLE_LENGTH]} (branch)"
    values = {"id": new_id(), "title": title, "created": now, "updated": now, "turns": turns, "head": turn_id}
    return conversation.model_copy(update=values)


def title_of(conversation: Conversation) -> str:
    """Return the title for a list of conversations."""
    if conversation.title:
        return conversation.title
    # The shown branch has the newest version of the first question. Without a branch, any version is a title.
    turns = [*path(conversation), *conversation.turns.values()]
    question = next((turn.content for turn in turns if turn.role == "user"), "")
    line = " ".join(question.split())
    return line if len(line) <= TITLE_LENGTH else f"{line[: TITLE_LENGTH - 1]}…"


def to_messages(conversation: Conversation) -> tuple[Message, ...]:
    """Return the branch that is shown as messages for a request. Answers without text and calls are skipped."""
    system = [Message("system", conversation.system.strip())] if conversation.system.strip() else []
    turns = [turn for turn in path(conversation) if turn.role != "assistant" or turn.content or turn.calls]
    return (*system, *(_to_message(turn) for turn in turns))


def _to_message(turn: Turn) -> Message:
    calls = tuple(call for call in turn.calls if not call.error)
    # A call that cannot be parsed is sent as text, so that the model sees its own output.
    broken = [call.arguments for call in turn.calls if call.error]
    return Message(turn.role, "\n".join(filter(None, [turn.content, *broken])), turn.thinking, calls, turn.name)
