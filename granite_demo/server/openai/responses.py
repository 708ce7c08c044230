"""The bodies of answers, for the description of the API (``/v1/openapi.json``) only: handlers send plain objects.

The types of the openai package describe some 15 objects that this server never sends, lack ``reasoning_content``,
``citations`` and ``appendices``, and take a second to import at each start.
"""

from typing import Any, Literal

from pydantic import BaseModel

from granite_demo.server.openai.protocol import Call
from granite_demo.types.events import Appendix, Citation

StandardFinishReason = Literal["stop", "length", "tool_calls"]
"""The reasons that OpenAI's API has; an answer that is stopped or fails has none."""


class ErrorObject(BaseModel):
    """An error, and the field of the request that caused it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The body of every error."""

    error: ErrorObject


class Model(BaseModel):
    """The model that answers."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[Model]


class UsageDetails(BaseModel):
    """A part of ``completion_tokens``."""

    reasoning_tokens: int


class UsageReply(BaseModel):
    """The tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: UsageDetails


class AnswerMessage(BaseModel):
    """The message of the model. ``citations`` and ``appendices`` come only if the request asks for them."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None
    citations: list[Citation] | None = None
    appendices: list[Appendix] | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: StandardFinishReason


class ChatCompletion(BaseModel):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReply


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: StandardFinishReason


class Completion(BaseModel):
    """The continuations of a text."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageReply


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorReply, "description": "The request is not valid."},
    401: {"model": ErrorReply, "description": "The API key is missing or wrong."},
    404: {"model": ErrorReply, "description": "The model is not available here."},
    413: {"model": ErrorReply, "description": "The body is too large."},
    429: {"model": ErrorReply, "description": "The visitor has reached a limit."},
    "5XX": {"model": ErrorReply, "description": "The model cannot answer now, or failed."},
}
