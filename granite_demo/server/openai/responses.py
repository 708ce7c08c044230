"""The bodies of answers, as the description of the API tells them."""

from typing import Any, Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length", "tool_calls"]


class ErrorObject(BaseModel):
    """What went wrong, and which field of the request is to blame."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Every error's body."""

    error: ErrorObject


class Model(BaseModel):
    """A model that answers here."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


class UsageDetails(BaseModel):
    """What the completion's tokens were spent on."""

    reasoning_tokens: int


class UsageReply(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: UsageDetails


class CalledFunction(BaseModel):
    """``arguments`` are JSON text."""

    name: str
    arguments: str


class CallReply(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(BaseModel):
    """The model's turn. ``citations`` and ``appendices`` come from models that were asked for them."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[CallReply] | None = None
    citations: list[dict[str, Any]] | None = None
    appendices: list[dict[str, str]] | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReply


class CompletionChoice(BaseModel):
    """One way to go on."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason


class Completion(BaseModel):
    """The ways in which a text goes on."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageReply


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorReply, "description": "The request cannot be served as it is."},
    401: {"model": ErrorReply, "description": "The API key is missing or wrong."},
    404: {"model": ErrorReply, "description": "Another model answers here."},
    413: {"model": ErrorReply, "description": "The body is too large."},
    "5XX": {"model": ErrorReply, "description": "The model cannot answer now, or failed."},
}
