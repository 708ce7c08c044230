"""``/v1/chat/completions``: the body to requests, and events to the answer."""

import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from granite_demo.chat import documents
from granite_demo.chat.tools import parse_tools
from granite_demo.errors import InvalidRequestError
from granite_demo.outputs.tool_calls import read_calls
from granite_demo.server.openai import transformers_chat
from granite_demo.server.openai.choices import Json, Wire, chat_logprob
from granite_demo.server.openai.errors import RefusedError, about
from granite_demo.server.openai.params import (
    check_model,
    check_stream,
    constraints_of,
    controls_of,
    only_constraint,
    sampling_of,
    schema_constraint,
    seed_of,
    served_name,
)
from granite_demo.server.openai.protocol import ChatMessage, ChatRequest
from granite_demo.server.openai.tool_choice import call_constraint, must_call
from granite_demo.types.constraints import Constraint
from granite_demo.types.events import (
    Appendix,
    Citation,
    Finish,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
    TokenScored,
    ToolCalled,
)
from granite_demo.types.messages import Document, Message, ToolCall, ToolSpec
from granite_demo.types.model_status import ModelStatus
from granite_demo.types.requests import GenerationRequest


def requests_of(body: ChatRequest, status: ModelStatus) -> list[GenerationRequest]:
    """One request for each of the ``n`` answers. Raises InvalidRequestError."""
    check_model(body.model, status)
    check_stream(body)
    if body.generation_config is not None:
        body = transformers_chat.with_config(body)
    tools = _tools(body, status)
    forced = must_call(body.tool_choice, tools)
    constraint = only_constraint([*_response_format(body), *constraints_of(body)], status)
    if constraint and tools:
        raise RefusedError(
            "tools cannot be used together with an answer format, which a tool call would not follow.", ("tools",)
        )
    if forced:
        constraint = only_constraint([("tool_choice", call_constraint(forced))], status)
    sampling = sampling_of(body, status, max_tokens=_max_tokens(body), logprobs=_logprobs(body), constraint=constraint)
    controls = controls_of(body, status)
    messages, texts = tuple(_messages(body.messages)), _documents(body, status)
    with about("messages"):
        _check_continued(body)
        first = GenerationRequest(messages, sampling=sampling, tools=tools, documents=texts, controls=controls)
    choices = range(body.n or 1)
    return [replace(first, sampling=replace(sampling, seed=seed_of(sampling, choice))) for choice in choices]


def wire_of(body: ChatRequest, status: ModelStatus) -> Wire:
    """The writer of the answer to ``body``."""
    forced = body.tool_choice not in (None, "none", "auto")
    choices = [(ForcedCall if forced else ChatChoices)(number) for number in range(body.n or 1)]
    return Wire("chat.completion", "chat.completion.chunk", "chatcmpl", served_name(status), choices)


def _max_tokens(body: ChatRequest) -> int | None:
    wanted: list[int] = [value for value in (body.max_completion_tokens, body.max_tokens) if value is not None]
    if len(set(wanted)) > 1:
        raise RefusedError("max_tokens and max_completion_tokens differ. Send only one of them.", ("max_tokens",))
    return wanted[0] if wanted else None


def _logprobs(body: ChatRequest) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise RefusedError("top_logprobs requires logprobs to be true.", ("top_logprobs",))
    return (body.top_logprobs or 0) if body.logprobs else None


def _messages(turns: list[ChatMessage]) -> Iterator[Message]:
    names: dict[str, str] = {}
    for number, turn in enumerate(turns):
        with about("messages", number):
            yield _message(turn, names, number)
        names.update({call.id: call.function.name for call in turn.tool_calls or ()})


def _check_continued(body: ChatRequest) -> None:
    """Raise RefusedError if the fields about a continued message do not agree with the last message."""
    continued = body.messages[-1].role == "assistant"
    new_turn = body.continue_final_message is False or body.add_generation_prompt is True
    if continued and new_turn:
        raise RefusedError("The last message is from the assistant: its text is continued.", ("messages",))
    if not continued and body.continue_final_message:
        raise RefusedError("The last message is not from the assistant.", ("continue_final_message",))


def _message(turn: ChatMessage, names: dict[str, str], number: int) -> Message:
    role = "system" if turn.role == "developer" else turn.role
    if not isinstance(role, str):
        raise InvalidRequestError("The role of a message must be a string.")
    name = turn.name or ""
    if role == "tool" and turn.tool_call_id is not None:
        if turn.tool_call_id not in names:
            raise RefusedError("No earlier message has a tool call with this ID.", ("messages", number, "tool_call_id"))
        name = name or names[turn.tool_call_id]
    if role != "tool" and turn.tool_call_id is not None:
        raise RefusedError("tool_call_id is allowed in tool messages only.", ("messages", number, "tool_call_id"))
    calls = tuple(ToolCall(call.function.name, call.function.arguments) for call in turn.tool_calls or ())
    content = _text(turn.content, number)
    if content is None and (calls or turn.reasoning_content):
        content = ""
    return Message(role, content, turn.reasoning_content or "", calls, name)  # type: ignore[arg-type]  # it checks both


def _text(content: Any, number: int) -> Any:
    if not isinstance(content, list):
        return content
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        path = ("messages", number, "content", place)
        if kind != "text":
            what = f"{kind:.40} parts" if isinstance(kind, str) else "Parts without a type"
            raise RefusedError(f"{what} are not supported: this model reads text only.", path)
        if not isinstance(part.get("text"), str) or len(part) > 2:
            raise RefusedError("A text part must have the fields type and text, and no others.", path)
    return "\n".join(part["text"] for part in content)


def _documents(body: ChatRequest, status: ModelStatus) -> tuple[Document, ...]:
    given = [document.given() for document in body.documents or ()]
    texts = tuple(Document(fields.get("title") or "", fields["text"], fields) for fields in given)
    with about("documents"):
        if texts and status.stage == "ready" and not status.switches.documents:
            raise InvalidRequestError("The chat template of this model does not support documents.")
        documents.check(texts)
    return texts


def _tools(body: ChatRequest, status: ModelStatus) -> tuple[ToolSpec, ...]:
    with about("tools"):
        if not body.tools:
            return ()
        for number, tool in enumerate(body.tools):
            function = tool.get("function", tool) if isinstance(tool, dict) else {}
            if isinstance(function, dict) and function.get("strict"):
                path = ("tools", number, "function", "strict")
                raise RefusedError("strict is not supported: a call can differ from its schema.", path)
        try:
            tools = parse_tools(json.dumps(body.tools))
        except RecursionError:
            raise InvalidRequestError("The tools are nested too deeply.") from None
        if status.stage == "ready" and not status.switches.tools:
            raise InvalidRequestError("The chat template of this model does not support tools.")
    return () if body.tool_choice == "none" else tools


def _response_format(body: ChatRequest) -> Iterator[tuple[str, Constraint]]:
    wanted = body.response_format
    if wanted is None:
        return
    with about("response_format"):
        if (wanted.type == "json_schema") != (wanted.json_schema is not None):
            raise InvalidRequestError("The field json_schema must be used together with the type json_schema.")
        if wanted.type == "json_object":
            yield "response_format", Constraint("json_object")
        if wanted.json_schema is not None:
            yield "response_format", schema_constraint(wanted.json_schema.schema_)


class ChatChoices:
    """One answer of a chat. Its choices have deltas."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._scored: list[Json] = []
        self._calls = 0
        self._begun = False

    def start(self) -> None:
        """None: the role is sent with the first token, so that a client can measure the time to it."""

    def of(self, event: StreamEvent) -> Json | None:
        """See ``Choices.of``."""
        delta: Json = {}
        reason = None
        match event:
            case TokenScored(token):
                self._scored.append(chat_logprob(token))
                return None
            case TextDelta(text):
                delta = {"content": text} if text else {}
            case ReasoningDelta(text):
                delta = {"reasoning_content": text} if text else {}
            case ToolCalled(call):
                delta = self.called(call)
            case Citation():
                delta = {"citations": [asdict(event)]}
            case Appendix():
                delta = {"appendices": [asdict(event)]}
            case Finish():
                reason = event.reason
        if not (delta or self._scored or reason):
            return None
        if not self._begun:
            self._begun = True
            delta = {"role": "assistant", "content": "", **delta}
        scored, self._scored = self._scored, []
        logprobs = {"content": scored, "refusal": None} if scored else None
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def called(self, call: ToolCall) -> Json:
        """The delta for ``call``."""
        if call.error:  # a call that cannot be parsed is sent as text, with its name
            shown = not call.name or call.name in call.arguments
            named = f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments}}}'
            return {"content": call.arguments if shown else named}
        function = {"name": call.name, "arguments": call.arguments}
        made = {"index": self._calls, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
        self._calls += 1
        return {"tool_calls": [made]}

    def whole(self, parts: list[Json]) -> Json:
        """See ``Choices.whole``."""
        deltas = [part["delta"] for part in parts]
        message: Json = {"role": "assistant", "content": "".join(delta.get("content", "") for delta in deltas)}
        if thinking := "".join(delta.get("reasoning_content", "") for delta in deltas):
            message["reasoning_content"] = thinking
        for name in ("tool_calls", "citations", "appendices"):
            if found := [item for delta in deltas for item in delta.get(name, ())]:
                message[name] = found
        for call in message.get("tool_calls", ()):
            del call["index"]
        if "tool_calls" in message:
            message["content"] = message["content"] or None
        scored = [token for part in parts if part["logprobs"] for token in part["logprobs"]["content"]]
        logprobs = {"content": scored, "refusal": None} if scored else None
        reason = parts[-1]["finish_reason"]
        return {"index": self._index, "message": message, "logprobs": logprobs, "finish_reason": reason}


class ForcedCall(ChatChoices):
    """One answer that is a forced call, which is sent whole at the end."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._text = ""

    def of(self, event: StreamEvent) -> Json | None:
        """See ``Choices.of``."""
        if isinstance(event, TextDelta):
            self._text += event.text
            return None
        if not isinstance(event, Finish):
            return super().of(event)
        calls, rest = read_calls(self._text)
        made = [call for call in calls if not call.error]
        part = super().of(replace(event, reason="tool_calls") if made and not rest else event)
        if part is not None:
            part["delta"] |= self.called(made[0]) if made else {"content": self._text}
        return part
