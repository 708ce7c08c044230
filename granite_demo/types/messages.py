"""What a conversation is made of. Standard library only; knows neither models nor pages."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from granite_demo.errors import InvalidRequestError

Role = Literal["system", "user", "assistant", "tool"]
Thinking = Literal["off", "low", "full"]
Length = Literal["short", "long"]
Originality = Literal["extractive", "abstractive"]


def scrub(text: str) -> str:
    """Replace lone surrogates, which neither tokenizers nor JSON writers accept, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's call of a tool. ``error`` says why it cannot be read as one; ``arguments`` is then its raw text."""

    name: str
    arguments: str
    """JSON text of an object."""
    error: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", scrub(self.name))
        object.__setattr__(self, "arguments", scrub(self.arguments))


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that the model may call: OpenAI's function definition."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of an object."""

    def as_function(self) -> dict[str, Any]:
        """The definition as chat templates and OpenAI's API take it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Document:
    """A text to answer from. Its number, from 1, is its place among the request's documents."""

    title: str
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", scrub(self.title))
        object.__setattr__(self, "text", scrub(self.text))


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. ``thinking`` and ``tool_calls`` are an assistant's; ``name`` is a tool's."""

    role: Role
    content: str
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise InvalidRequestError(
                f"A message's role must be one of {', '.join(get_args(Role))}, not {self.role!r}."
            )
        if not isinstance(self.content, str):
            raise InvalidRequestError("A message's content must be text.")
        if self.role != "assistant" and (self.thinking or self.tool_calls):
            raise InvalidRequestError("Only an assistant's message can have thinking or tool calls.")
        for name in ("content", "thinking", "name"):
            object.__setattr__(self, name, scrub(getattr(self, name)))


@dataclass(frozen=True, slots=True)
class Controls:
    """The switches of Granite's chat templates. None and False leave a switch as the template has it.

    A model takes those that its ``Switches`` name; others change nothing. Raises InvalidRequestError.
    """

    thinking: Thinking | None = None
    length: Length | None = None
    originality: Originality | None = None
    citations: bool = False
    hallucinations: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("thinking", Thinking), ("length", Length), ("originality", Originality)):
            value = getattr(self, name)
            if value is not None and value not in get_args(kind):
                raise InvalidRequestError(f"{name} must be one of {', '.join(get_args(kind))}, not {value!r}.")
        for name in ("citations", "hallucinations"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(f"{name} must be true or false.")


@dataclass(frozen=True, slots=True)
class Switches:
    """What a chat template reads, as found from the template itself."""

    thinking: tuple[Thinking, ...] = ()
    """The levels that differ, the template's own first; empty where it has none."""
    length: bool = False
    originality: bool = False
    citations: bool = False
    hallucinations: bool = False
    tools: bool = False
    documents: bool = False
    conflicts: tuple[tuple[str, str], ...] = ()
    """(switch, what makes the template ignore it): such as ("thinking", "system"), "tools" or "documents"."""
    dialect: str = "plain"
    """The name of the row in ``dialects`` that the model's answers are read by."""


def canonical_json(value: Any) -> str:
    """``value`` as the one JSON text that hashes and comparisons are made of."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
