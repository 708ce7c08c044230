"""One answer of ``/v1/chat/completions``: events to deltas, and those to a message."""

import secrets
from dataclasses import replace

from granite_demo.api.wire import Json, chat_logprob
from granite_demo.messages import ToolCall
from granite_demo.toolcalls import read_calls
from granite_demo.types import (
    Appendix,
    Citation,
    Finish,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
    TokenScored,
    ToolCalled,
)


class ChatChoices:
    """One answer of a chat: its choices are deltas."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._scored: list[Json] = []
        self._calls = 0
        self._begun = False

    def start(self) -> None:
        """Nothing: the role goes out with the first words, so that a client can time those."""

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
            case Citation(document, start, end):
                delta = {"citations": [{"document": document, "start": start, "end": end}]}
            case Appendix(kind, text):
                delta = {"appendices": [{"kind": kind, "text": text}]}
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
        """The delta that tells of ``call``."""
        if call.error:  # what cannot be read as a call is what the model wrote
            return {"content": call.arguments}
        function = {"name": call.name, "arguments": call.arguments}
        told = {"index": self._calls, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
        self._calls += 1
        return {"tool_calls": [told]}

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
    """One answer that is a call. It is told whole, at its end."""

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
