"""Messages, tools, documents and switches of a conversation. Uses the standard library only."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from granite_demo.errors import InvalidRequestError

Role = Literal["system", "user", "assistant", "tool"]
Thinking = Literal["off", "low", "full"]
Length = Literal["short", "long"]
Originality = Literal["extractive", "abstractive"]


def scrub(text: str) -> str:
    """Replace lone surrogates with U+FFFD, because tokenizers and JSON writers do not accept them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call of a model. If it cannot be parsed, ``error`` is the reason and ``arguments`` is the raw text."""

    name: str
    arguments: str
    """The JSON text of an object."""
    error: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", scrub(self.name))
        object.__setattr__(self, "arguments", scrub(self.arguments))


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that the model can call, as in the function definition of OpenAI."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """The JSON schema of an object."""
    given: Mapping[str, Any] | None = field(default=None, compare=False)
    """The definition as a client wrote it, for the chat template. None: it is made from the other fields."""

    def as_function(self) -> dict[str, Any]:
        """Return the definition in the format of OpenAI, which chat templates also use."""
        if self.given is not None:
            return dict(self.given)
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Document:
    """A text that the answer must use. Its number, from 1, is its position in the documents of the request."""

    title: str
    text: str
    given: Mapping[str, Any] | None = field(default=None, compare=False)
    """The fields as a client wrote them, for the chat template. None: number, title and text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", scrub(self.title))
        object.__setattr__(self, "text", scrub(self.text))

    def values(self) -> dict[str, Any]:
        """Return the fields that are set, for a file."""
        given = {} if self.given is None else {"given": dict(self.given)}
        return {"title": self.title, "text": self.text, **given}


@dataclass(frozen=True, slots=True)
class Message:
    """One message. Only the assistant has ``thinking`` and ``tool_calls``.

    Raises InvalidRequestError.
    """

    role: Role
    content: str
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise InvalidRequestError(
                f"The role of a message must be one of {', '.join(get_args(Role))}, not {self.role!r}."
            )
        if not isinstance(self.content, str):
            raise InvalidRequestError("The content of a message must be a text.")
        if self.role != "assistant" and (self.thinking or self.tool_calls):
            raise InvalidRequestError("Only a message of the assistant can have thinking or tool calls.")
        for name in ("content", "thinking", "name"):
            object.__setattr__(self, name, scrub(getattr(self, name)))


@dataclass(frozen=True, slots=True)
class Controls:
    """The values for the switches of the Granite chat templates. None and False: the default of the template.

    A model ignores a switch that its ``Switches`` do not have. Raises InvalidRequestError.
    """

    thinking: Thinking | None = None
    length: Length | None = None
    originality: Originality | None = None
    citations: bool = False
    hallucinations: bool = False
    truncate_history_thinking: bool | None = None
    """Whether the template leaves the thinking of earlier answers out. None: its default."""
    schema_in_prompt: bool = False
    """Whether the system message has the JSON schema of the answer, in the words that Granite 4.0 and 4.1 know."""

    def __post_init__(self) -> None:
        for name, kind in (("thinking", Thinking), ("length", Length), ("originality", Originality)):
            value = getattr(self, name)
            if value is not None and value not in get_args(kind):
                raise InvalidRequestError(f"{name} must be one of {', '.join(get_args(kind))}, not {value!r}.")
        for name in ("citations", "hallucinations", "schema_in_prompt"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(f"{name} must be true or false.")


@dataclass(frozen=True, slots=True)
class Switches:
    """The switches that a chat template reads. They are detected from the template."""

    thinking: tuple[Thinking, ...] = ()
    """The different levels, the default of the template first. Empty: none."""
    length: bool = False
    originality: bool = False
    citations: bool = False
    hallucinations: bool = False
    tools: bool = False
    documents: bool = False
    conflicts: tuple[tuple[str, str], ...] = ()
    """(switch, reason why the template ignores it). The reason is "system", "tools", "documents" or "no documents"."""
    dialect: str = "plain"
    """The name of the row in ``dialects`` that parses the answers of the model."""


def canonical_json(value: Any) -> str:
    """Return ``value`` as canonical JSON, for hashes and comparisons: sorted keys, no whitespace."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
