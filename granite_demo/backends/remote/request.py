"""Converts a request to a body of OpenAI's API, with the extensions that vLLM, SGLang and granite-demo share."""

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
"""Extensions and the values that switch them off. The values are sent, because servers have other defaults."""
FIELD_NAMES = {"llama.cpp": {"repetition_penalty": "repeat_penalty"}}
"""Other names of a field, by the kind of server."""
OURS = "granite-demo"
"""The kind of a server that runs this program."""


@dataclass(frozen=True, slots=True)
class Body:
    """The body to send to ``path``. If the server rejects ``optional`` fields, they can be removed."""

    path: str
    fields: dict[str, Any]
    optional: frozenset[str]

    def without(self, names: frozenset[str]) -> "Body":
        """Return the body without those of ``names`` that are optional."""
        gone = names & self.optional
        kept = {name: value for name, value in self.fields.items() if name not in gone}
        return Body(self.path, kept, self.optional - gone)


def to_body(request: GenerationRequest, model: str, family: Family, kind: str, seed: int | None = None) -> Body:
    """Return the body of ``request`` for a server of ``kind``. ``seed`` is a seed that the request does not require.

    Raises InvalidRequestError for a feature that such a server does not have.
    """
    sampling = request.sampling
    if any(request.begun):
        raise InvalidRequestError(
            "Another server cannot continue a text with a constraint. Accept or discard the text, and start again."
        )
    if request.written or request.written_text:
        raise InvalidRequestError("Another server cannot continue an answer. Retry it.")
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
    if sampling.thinking_token_budget is not None:
        if kind not in ("vLLM", OURS):
            raise InvalidRequestError("This server cannot limit the thinking tokens. Remove the limit.")
        fields["thinking_token_budget"] = sampling.thinking_token_budget
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): value for token, value in sampling.logit_bias}
    return fields


def _name(name: str, kind: str) -> str:
    return FIELD_NAMES.get(kind, {}).get(name, name)


def special_tokens(wanted: bool, kind: str) -> dict[str, bool]:
    """Return the field that sets whether control tokens in a text are parsed. Raises InvalidRequestError.

    Only a server of the kind granite-demo has this field.
    """
    if kind == OURS:
        return {"special_tokens": wanted}
    if wanted:
        raise InvalidRequestError(
            "Another server decides itself which text it parses as control tokens. Remove --special-tokens."
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
    if request.continued:
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    if request.tools:
        fields["tools"] = [tool.as_function() for tool in request.tools]
    if request.documents:
        fields["documents"] = [
            dict(document.given or {"doc_id": str(number), "title": document.title, "text": document.text})
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
    """Return the conversation in the format of OpenAI, which needs an id for each tool call and its result."""
    turns: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []
    count = 0
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name and message.role != "tool":
            turn["name"] = message.name
        if message.tool_calls:
            open_calls = []
            for call in message.tool_calls:
                count += 1
                open_calls.append((f"call_{count}", call.name))
            turn["tool_calls"] = [
                {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for (call_id, _), call in zip(open_calls, message.tool_calls, strict=True)
            ]
        elif message.role == "tool":
            answered = next(
                (call for call in open_calls if call[1] == message.name), (open_calls or [("call_0", "")])[0]
            )
            open_calls = [call for call in open_calls if call != answered]
            turn |= {"tool_call_id": answered[0], **({"name": message.name} if message.name else {})}
        turns.append(turn)
    return turns


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
            "This server accepts only JSON and JSON schemas as a constraint, not a regex or choices."
        )
    form = {"regex": constraint.pattern} if constraint.kind == "regex" else {"choice": list(constraint.choices)}
    return {"structured_outputs": form}
