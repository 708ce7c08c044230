"""All that is needed to make an answer again, as one JSON file. Knows neither backends nor pages.

``made`` is kept with each answer, and small; ``bundle`` adds the conversation that led to it. The system prompt, tools
and documents are those that the conversation has now, with a note where they were changed since.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from granite_demo import __version__
from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation
from granite_demo.chat.tools import parse_tools
from granite_demo.errors import InvalidRequestError
from granite_demo.types.events import Finish, FinishReason, Provenance
from granite_demo.types.messages import Controls, Document, Message, ToolCall, ToolSpec, canonical_json
from granite_demo.types.requests import GenerationRequest, Overflow
from granite_demo.types.sampling_params import SamplingParams

BUNDLE_FORMAT = "granite-demo-answer"
MAX_BUNDLE_BYTES = 32_000_000
STOPPED = "stopped"
"""The reason of an answer that its reader has stopped, or an error has ended."""
CHANGED = (
    "The system prompt, the tools or the documents were changed after this answer. The file has them as they were when "
    "it was saved, so it asks for something else than what was answered."
)
UNREADABLE_TOOLS = "The conversation's tools cannot be read, so they are not in the file."
MAKING_PACKAGES = ("transformers", "torch", "tokenizers", "gradio", "llama-cpp-python", "bitsandbytes", "flash-attn")


class _SavedPart(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class SavedRequest(_SavedPart):
    """The part of a GenerationRequest that a file can set, with the tools as OpenAI's API has them."""

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    sampling: SamplingParams
    tools: tuple[dict[str, Any], ...] = ()
    documents: tuple[Document, ...] = ()
    controls: Controls = Controls()
    overflow: Overflow = "refuse"


class Answered(_SavedPart):
    """What the model wrote."""

    text: str
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()


class Made(_SavedPart):
    """How the answer came to be, apart from what was asked for."""

    time: str = ""
    carried: str = ""
    """The hash of the system prompt, tools and documents that were sent."""
    finish_reason: FinishReason = "stop"
    usage: dict[str, int] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict)
    token_ids: tuple[int, ...] = ()
    provenance: Provenance = Provenance()
    versions: dict[str, str] = Field(default_factory=dict)


class Bundle(_SavedPart):
    """One answer, with all that made it."""

    format: Literal["granite-demo-answer"]
    version: Literal[1]
    request: SavedRequest
    answer: Answered
    made: Made
    note: str = ""
    """What the request is not as it was, in plain words."""


@cache
def versions() -> Mapping[str, str]:
    """The versions of this program, of what computes, and of Python."""
    found = {"granite-demo": __version__}
    for package in MAKING_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {**found, "python": platform.python_version()}


def made(request: GenerationRequest, finish: Finish | None) -> dict[str, Any]:
    """What to keep with an answer: JSON for ``conversations.Turn.made``.

    Without ``finish`` the answer was stopped, or ended by an error, before the engine had it: no seed was drawn.
    """
    sampling = _changed(asdict(request.sampling), asdict(SamplingParams()))
    if finish and finish.seed is not None:
        sampling["seed"] = finish.seed
    if request.written:  # made again it is written in one go; where it was sampled it then differs
        sampling["max_tokens"] = len(request.written) + (request.sampling.max_tokens or 0)
    if "stop" in sampling:
        sampling["stop"] = list(sampling["stop"])
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "sampling": sampling,
        "controls": _changed(asdict(request.controls), asdict(Controls())),
        "overflow": request.overflow,
        "carried": _carried(request.messages, request.tools, request.documents),
        **(_ended(finish) if finish else {"finish_reason": STOPPED}),
        "versions": dict(versions()),
    }


def _ended(finish: Finish) -> dict[str, Any]:
    return {
        "finish_reason": finish.reason,
        "usage": asdict(finish.usage),
        "timings": {name: round(seconds, 4) for name, seconds in asdict(finish.timings).items()},
        "token_ids": list(finish.token_ids),
        "provenance": asdict(finish.provenance) if finish.provenance else {},
    }


def _carried(messages: Sequence[Message], tools: Sequence[ToolSpec], documents: Sequence[Document]) -> str:
    system = "\n".join(message.content for message in messages if message.role == "system")
    parts = [system, [spec.as_function() for spec in tools], [asdict(document) for document in documents]]
    # A tool that was not read from text may hold what UTF-8 has no bytes for.
    return sha256(canonical_json(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != defaults[name]}


def bundle(conversation: Conversation, turn_id: str) -> dict[str, Any]:
    """The answer ``turn_id`` as JSON to save. Raises InvalidRequestError where it is none that can be made again."""
    turn = conversations.find(conversation, turn_id)
    if turn.role != "assistant" or not turn.made:
        raise InvalidRequestError("How this message was made is not known, so it cannot be made again.")
    messages = conversations.to_messages(conversations.rewind(conversation, turn.parent))
    documents = conversation.documents
    kept = dict(turn.made)
    note = ""
    try:
        tools = parse_tools(conversation.tools)
    except InvalidRequestError:  # the text may have been edited since, or be one that was never sent
        tools, note = (), UNREADABLE_TOOLS
    if "carried" in kept:  # not kept with the answers of earlier versions
        note = "" if kept["carried"] == _carried(messages, tools, documents) else f"{CHANGED} {note}".strip()
    request = {
        "messages": [_said(message) for message in messages],
        "sampling": kept.pop("sampling", {}),
        "tools": [spec.as_function() for spec in tools],
        "documents": [asdict(document) for document in documents],
        "controls": kept.pop("controls", {}),
        "overflow": kept.pop("overflow", conversation.overflow),
    }
    calls = [asdict(call) for call in turn.calls]
    answer = {"text": turn.content, "thinking": turn.thinking, "calls": calls}
    noted = {"note": note} if note else {}
    return {"format": BUNDLE_FORMAT, "version": 1, **noted, "request": request, "answer": answer, "made": kept}


def _said(message: Message) -> dict[str, Any]:
    values = asdict(message)
    return {name: value for name, value in values.items() if value or name in ("role", "content")}


def read_bundle(text: str | bytes) -> Bundle:
    """The bundle in a file. Raises InvalidRequestError for anything else."""
    if len(text) > MAX_BUNDLE_BYTES:
        raise InvalidRequestError(f"The file is larger than {MAX_BUNDLE_BYTES // 1_000_000} MB.")
    try:
        # Bounds the depth, and refuses lone surrogates, NaN and bytes that are not UTF-8.
        found = Bundle.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        told = f"{where}: {first['msg']}" if where else first["msg"]
        raise InvalidRequestError(f"This is not an answer that granite-demo saved to be made again ({told}).") from None
    except ValueError:  # a number of thousands of digits
        raise InvalidRequestError("This is not an answer that granite-demo saved to be made again.") from None
    to_request(found)  # what cannot be asked is told now, not after a model was loaded
    return found


def to_request(bundle: Bundle) -> GenerationRequest:
    """The request that led to the answer, with its seed. Raises InvalidRequestError for values out of range."""
    saved = dict(bundle.request)
    tools = parse_tools(json.dumps(saved["tools"])) if saved["tools"] else ()
    return GenerationRequest(**saved | {"tools": tools})
