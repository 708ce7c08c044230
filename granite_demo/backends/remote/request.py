"""A request as the bodies of OpenAI's API, with the extensions that vLLM, SGLang and our own server share."""

import json
from dataclasses import dataclass
from typing import Any

from granite_demo.backends.remote.families import Family
from granite_demo.errors import InvalidRequestError
from granite_demo.prompts.chat_template import switch_values
from granite_demo.types.constraints import Constraint
from granite_demo.types.messages import Message
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams

OFF = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Extensions with the values that switch them off: said, since servers have defaults of their own."""
NAMES = {"llama.cpp": {"repetition_penalty": "repeat_penalty"}}
"""Where a kind of server has another name for a field."""
OURS = "granite-demo"
"""The kind that is this program."""


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent to ``path``. ``optional`` fields may be left out where a server does not take them."""

    path: str
    fields: dict[str, Any]
    optional: frozenset[str]

    def without(self, names: frozenset[str]) -> "Body":
        """The same without those of ``names`` that are optional."""
        gone = names & self.optional
        kept = {name: value for name, value in self.fields.items() if name not in gone}
        return Body(self.path, kept, self.optional - gone)


def to_body(request: GenerationRequest, model: str, family: Family, kind: str, seed: int | None = None) -> Body:
    """The body of ``request`` for a server of ``kind``; ``seed`` is one that nobody asked for.

    Raises InvalidRequestError for what such a server cannot be asked.
    """
    sampling = request.sampling
    if any(request.begun):
        raise InvalidRequestError(
            "Another server cannot go on with a text that has to be of one form. Accept or discard it, and begin anew."
        )
    optional = {"stream_options": {"include_usage": True}, **({} if seed is None else {"seed": seed})}
    fields = {"model": model, "stream": True, **_sampling(sampling, kind), **_constraint(sampling.constraint, kind)}
    if sampling.temperature > 0:
        unset = {name: value for name, value in OFF.items() if getattr(sampling, name) == value}
        optional |= {_name(name, kind): value for name, value in unset.items()}
    fields |= _raw(request, kind) if request.raw else _chat(request, family)
    path = "/completions" if request.raw else "/chat/completions"
    return Body(path, {**fields, **optional}, frozenset(optional))


def _sampling(sampling: SamplingParams, kind: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    for name, off in OFF.items():
        if getattr(sampling, name) != off:
            fields[_name(name, kind)] = getattr(sampling, name)
    for name in ("max_tokens", "seed", "frequency_penalty", "presence_penalty"):
        if value := getattr(sampling, name):
            fields[name] = value
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): value for token, value in sampling.logit_bias}
    return fields


def _name(name: str, kind: str) -> str:
    return NAMES.get(kind, {}).get(name, name)


def special_tokens(wanted: bool, kind: str) -> dict[str, bool]:
    """Whether a text may spell control tokens, for a server of ``kind``. Raises InvalidRequestError."""
    if kind == OURS:
        return {"special_tokens": wanted}
    if wanted:
        raise InvalidRequestError(
            "Another server decides itself what it takes for control tokens. Leave --special-tokens out."
        )
    return {}


def _raw(request: GenerationRequest, kind: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"prompt": request.prompt if request.prompt_ids is None else list(request.prompt_ids)}
    if request.prompt_ids is None:
        fields |= special_tokens(request.special_tokens, kind)
    if request.suffix is not None:
        fields["suffix"] = request.suffix
    if request.sampling.logprobs is not None:
        fields["logprobs"] = request.sampling.logprobs
    return fields


def _chat(request: GenerationRequest, family: Family) -> dict[str, Any]:
    fields: dict[str, Any] = {"messages": to_messages(request.messages)}
    if request.tools:
        fields["tools"] = [tool.as_function() for tool in request.tools]
    if request.documents:
        fields["documents"] = [
            {"doc_id": str(number), "title": document.title, "text": document.text}
            for number, document in enumerate(request.documents, 1)
        ]
    if switches := {
        name: value for name, value in switch_values(request.controls, family.variables).items() if value != {}
    }:
        fields["chat_template_kwargs"] = switches
    if request.sampling.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": request.sampling.logprobs}
    return fields


def to_messages(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The conversation in OpenAI's words: each call has an id, which its result names."""
    told: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []
    count = 0
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            open_calls = []
            for call in message.tool_calls:
                count += 1
                open_calls.append((f"call_{count}", call.name))
            turn["tool_calls"] = [
                {"id": ident, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for (ident, _), call in zip(open_calls, message.tool_calls, strict=True)
            ]
        elif message.role == "tool":
            mine = next((call for call in open_calls if call[1] == message.name), (open_calls or [("call_0", "")])[0])
            open_calls = [call for call in open_calls if call != mine]
            turn |= {"tool_call_id": mine[0], **({"name": message.name} if message.name else {})}
        told.append(turn)
    return told


def _constraint(constraint: Constraint | None, kind: str) -> dict[str, Any]:
    if constraint is None:
        return {}
    if constraint.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if constraint.kind == "json_schema":
        schema = {"name": "answer", "schema": json.loads(constraint.schema), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if kind not in ("vLLM", "granite-demo"):
        raise InvalidRequestError(
            "This server takes JSON and JSON schemas as the form of an answer, but no patterns and no choices."
        )
    form = {"regex": constraint.pattern} if constraint.kind == "regex" else {"choice": list(constraint.choices)}
    return {"structured_outputs": form}
