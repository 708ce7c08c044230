"""A JSON file with all data that is necessary to reproduce an answer.

Each answer keeps the small record of ``made``. ``bundle`` adds the conversation before the answer. The system prompt,
tools and documents are the current ones of the conversation, with a note if they changed after the answer.
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
"""The finish reason of an answer that the visitor stopped or that ended with an error."""
CHANGED = (
    "The system prompt, the tools or the documents changed after this answer. The file has them as they were when it "
    "was saved, so its request differs from the request of the answer."
)
UNREADABLE_TOOLS = "The tools of the conversation cannot be read, so they are not in the file."
MAKING_PACKAGES = ("transformers", "torch", "tokenizers", "gradio", "xllamacpp", "bitsandbytes", "flash-attn")


class _SavedPart(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class SavedRequest(_SavedPart):
    """The part of a GenerationRequest that a file can set. The tools are in the format of OpenAI."""

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    sampling: SamplingParams
    tools: tuple[dict[str, Any], ...] = ()
    documents: tuple[Document, ...] = ()
    controls: Controls = Controls()
    overflow: Overflow = "refuse"


class SavedAnswer(_SavedPart):
    """The output of the model."""

    text: str
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()


class Made(_SavedPart):
    """How the answer was generated, without the request."""

    time: str = ""
    carried: str = ""
    """The SHA-256 of the system prompt, tools and documents of the request."""
    finish_reason: FinishReason = "stop"
    usage: dict[str, int] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict)
    token_ids: tuple[int, ...] = ()
    provenance: Provenance = Provenance()
    versions: dict[str, str] = Field(default_factory=dict)


class Bundle(_SavedPart):
    """One answer with its request and its record."""

    format: Literal["granite-demo-answer"]
    version: Literal[1]
    request: SavedRequest
    answer: SavedAnswer
    made: Made
    note: str = ""
    """How the request differs from the original one. Empty: it does not."""


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of this program, of the packages that affect an answer, and of Python."""
    found = {"granite-demo": __version__}
    for package in MAKING_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {**found, "python": platform.python_version()}


def made(request: GenerationRequest, finish: Finish | None) -> dict[str, Any]:
    """Return the record of an answer, as JSON for ``conversation.Turn.made``.

    Without ``finish``, the answer was stopped, or it failed, before the engine had it, so it has no random seed.
    """
    sampling = _changed(asdict(request.sampling), asdict(SamplingParams()))
    sampling.pop("salt", None)
    if finish and finish.seed is not None:
        sampling["seed"] = finish.seed
    if request.written:  # it is reproduced as one answer; with sampling, the text can differ
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
    parts = [system, [spec.as_function() for spec in tools], [document.values() for document in documents]]
    # A tool that was not parsed from text can contain lone surrogates.
    return sha256(canonical_json(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != defaults[name]}


def bundle(conversation: Conversation, turn_id: str) -> dict[str, Any]:
    """Return the answer ``turn_id`` as JSON. Raises InvalidRequestError if it cannot be reproduced."""
    turn = conversations.find(conversation, turn_id)
    if turn.role != "assistant" or not turn.made:
        raise InvalidRequestError("This message has no record of how it was generated, so it cannot be reproduced.")
    messages = conversations.to_messages(conversations.rewind(conversation, turn.parent))
    documents = conversation.documents
    record = dict(turn.made)
    note = ""
    try:
        tools = parse_tools(conversation.tools)
    except InvalidRequestError:  # the text was edited later, or it was never sent
        tools, note = (), UNREADABLE_TOOLS
    if "carried" in record:  # records of earlier versions do not have it
        note = "" if record["carried"] == _carried(messages, tools, documents) else f"{CHANGED} {note}".strip()
    request = {
        "messages": [_message_values(message) for message in messages],
        "sampling": record.pop("sampling", {}),
        "tools": [spec.as_function() for spec in tools],
        "documents": [document.values() for document in documents],
        "controls": record.pop("controls", {}),
        "overflow": record.pop("overflow", conversation.overflow),
    }
    calls = [asdict(call) for call in turn.calls]
    answer = {"text": turn.content, "thinking": turn.thinking, "calls": calls}
    noted = {"note": note} if note else {}
    return {"format": BUNDLE_FORMAT, "version": 1, **noted, "request": request, "answer": answer, "made": record}


def _message_values(message: Message) -> dict[str, Any]:
    values = asdict(message)
    return {name: value for name, value in values.items() if value or name in ("role", "content")}


def read_bundle(text: str | bytes) -> Bundle:
    """Parse a bundle. Raises InvalidRequestError if the file is something else."""
    if len(text) > MAX_BUNDLE_BYTES:
        raise InvalidRequestError(f"The file is larger than {MAX_BUNDLE_BYTES // 1_000_000} MB.")
    try:
        # Limits the depth, and rejects lone surrogates, NaN and bytes that are not UTF-8.
        found = Bundle.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise InvalidRequestError(f"This is not a file of granite-demo for one answer ({reason}).") from None
    except ValueError:  # a number with thousands of digits
        raise InvalidRequestError("This is not a file of granite-demo for one answer.") from None
    to_request(found)  # raises errors of the request before a model is loaded
    return found


def to_request(bundle: Bundle) -> GenerationRequest:
    """Return the request of the answer, with its seed. Raises InvalidRequestError if a value is out of range."""
    saved = dict(bundle.request)
    tools = parse_tools(json.dumps(saved["tools"])) if saved["tools"] else ()
    return GenerationRequest(**saved | {"tools": tools})
