"""The bodies of requests. A field that is not here is refused by its name."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    PrivateAttr,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import Length, Originality
from granite_demo.types.sampling_params import MAX_ALTERNATIVES, MAX_SEED, SamplingParams

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
"""OpenAI's levels of thinking. A model has at most three: off, low and full."""
MAX_ANSWERS = 4
MAX_MESSAGES = 2000

STOP_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 4}]}
LOGPROBS_SCHEMA = {"type": "integer", "minimum": 0, "maximum": MAX_ALTERNATIVES}
TOKENS_SCHEMA = {"type": "integer", "minimum": 1, "maximum": 1_000_000}
BIAS_SCHEMA = {"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}

PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
    ]
}

TOOL_CHOICE_SCHEMA = {
    "anyOf": [
        {"enum": ["none", "auto", "required", None]},
        {
            "type": "object",
            "properties": {
                "type": {"const": "function"},
                "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
            },
            "required": ["type", "function"],
        },
    ]
}

PENALTY_SCHEMA = {"type": "number", "minimum": -2, "maximum": 2}


@dataclass(frozen=True, slots=True)
class Checked:
    """The mark of a field that ``check`` decides on; ``shape`` is its JSON schema. Null stands for not given."""

    check: Callable[[Any], Any]
    shape: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [self.shape, {"type": "null"}]}

    def _validate(self, value: Any) -> Any:
        if value is None:
            return None
        try:
            return self.check(value)
        except InvalidRequestError as error:
            raise ValueError(error.user_text) from None


def sampled(name: str, **shape: Any) -> Checked:
    """A field that is ``name`` of SamplingParams."""

    def check(value: Any) -> Any:
        return getattr(SamplingParams(**{name: value}), name)

    return Checked(check, shape)


MaxTokens = Annotated[Any, sampled("max_tokens", **TOKENS_SCHEMA)]
Object = Annotated[Any, WithJsonSchema({"type": "object"})]


class Strict(BaseModel):
    """Takes what it names, and nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True)


def only(*values: Any) -> Checked:
    """A field that takes these values alone. 1 is not true here, as it is for Python."""

    def check(value: Any) -> Any:
        if not any(value == known and type(value) is type(known) for known in values):
            allowed = " or ".join(map(json.dumps, values))
            raise PydanticCustomError("only", "It can only be {allowed} here", {"allowed": allowed})
        return value

    return Checked(check, {"enum": list(values)})


class StreamOptions(Strict):
    """``include_usage``: count the tokens in a last chunk."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, only(False)] = None


class StructuredOutputs(Strict):
    """vLLM's way to say what an answer has to be: one of these."""

    regex: str | None = None
    choice: list[str] | None = None
    json_: Annotated[Object, Field(alias="json")] = None


def check_bias(value: Any) -> Any:
    """OpenAI's object of token ids to the pairs of SamplingParams. Raises InvalidRequestError."""
    if not isinstance(value, dict):
        raise InvalidRequestError("logit_bias must be an object of token ids and numbers.")
    pairs = tuple((int(key) if key.isdecimal() and len(key) < 10 else key, bias) for key, bias in value.items())
    return SamplingParams(logit_bias=pairs).logit_bias


class Sampling(Strict):
    """What both kinds of request have. The last group changes nothing and is taken since many clients send it."""

    model: str = "default"
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    temperature: Annotated[Any, sampled("temperature", type="number", minimum=0, maximum=2)] = None
    top_p: Annotated[Any, sampled("top_p", type="number", exclusiveMinimum=0, maximum=1)] = None
    top_k: Annotated[Any, sampled("top_k", type="integer", minimum=0, maximum=1_000_000)] = None
    min_p: Annotated[Any, sampled("min_p", type="number", minimum=0, maximum=1)] = None
    seed: Annotated[Any, sampled("seed", type="integer", minimum=0, maximum=MAX_SEED)] = None
    stop: Annotated[Any, Checked(sampled("stop").check, STOP_SCHEMA)] = None
    frequency_penalty: Annotated[Any, sampled("frequency_penalty", **PENALTY_SCHEMA)] = None
    presence_penalty: Annotated[Any, sampled("presence_penalty", **PENALTY_SCHEMA)] = None
    thinking_token_budget: Annotated[Any, sampled("thinking_token_budget", **TOKENS_SCHEMA)] = None
    repetition_penalty: Annotated[Any, sampled("repetition_penalty", type="number", minimum=0.1, maximum=10)] = None
    logit_bias: Annotated[Any, Checked(check_bias, BIAS_SCHEMA)] = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    structured_outputs: StructuredOutputs | None = None

    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: Object | None = None
    store: Annotated[Any, only(False)] = None
    service_tier: Literal["auto", "default"] | None = None


class Function(Strict):
    """The function of a call: ``arguments`` are JSON text."""

    name: str
    arguments: str


class Call(Strict):
    """A call that an assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: Function


class ChatMessage(Strict):
    """A turn. ``content`` is text, or a list of parts that are text."""

    role: Annotated[
        Any, WithJsonSchema({"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]})
    ]
    content: Annotated[
        Any,
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                            "required": ["type", "text"],
                            "additionalProperties": False,
                        },
                    },
                    {"type": "null"},
                ]
            }
        ),
    ] = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    # Clients send an answer back as they got it, with the fields that were empty.
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class ChatDocument(Strict):
    """A text to answer from, in IBM's form. The chat template gets the fields that are given."""

    doc_id: str | int | None = None
    title: str | None = None
    text: str
    source: str | None = None
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        checked = handler(value)
        checked._given = dict(value) if isinstance(value, dict) else checked.model_dump(exclude_unset=True)
        return checked

    def given(self) -> dict[str, Any]:
        """Return the fields in the order in which they were given."""
        return self._given


class JsonSchema(Strict):
    """OpenAI's wrapping of a schema. It is always kept to, ``strict`` or not."""

    name: str = ""
    description: str | None = None
    schema_: Annotated[Object, Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Strict):
    """What an answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class TemplateControls(Strict):
    """The ``controls`` of Granite 3's templates. Unlike in ``types.messages.Controls``, each can be null."""

    citations: bool | None = None
    hallucinations: bool | None = None
    length: Length | None = None
    originality: Originality | None = None


class TemplateKwargs(Strict):
    """What a client may tell a chat template."""

    thinking: Annotated[Any, only(True, False, "off", "low", "full")] = None
    enable_thinking: bool | None = None
    low_effort: bool | None = None
    reasoning_effort: Effort | None = None
    truncate_history_thinking: bool | None = None
    schema_in_prompt: bool | None = None
    """Not a variable of a template: see ``types.messages.Controls``."""
    controls: TemplateControls | None = None


class ChatRequest(Sampling):
    """A conversation to answer."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: MaxTokens = None
    max_completion_tokens: MaxTokens = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Any, sampled("logprobs", **LOGPROBS_SCHEMA)] = None
    tools: list[Object] | None = None
    tool_choice: Annotated[Any, WithJsonSchema(TOOL_CHOICE_SCHEMA)] = None
    response_format: ResponseFormat | None = None
    documents: list[ChatDocument] | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    reasoning_effort: Effort | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    generation_config: str | None = None
    """JSON text of transformers' GenerationConfig, as ``transformers chat`` sends it."""

    parallel_tool_calls: Annotated[Any, only(True)] = None
    modalities: list[Literal["text"]] | None = None


def zero_or_max_tokens(value: Any) -> Any:
    """``max_tokens`` where an echo makes sense of 0."""
    return 0 if value == 0 and not isinstance(value, bool) else SamplingParams(max_tokens=value).max_tokens


class CompletionRequest(Sampling):
    """A text to go on with: as it stands, as the ids of its tokens, or with a ``suffix`` that follows the gap."""

    prompt: Annotated[Any, WithJsonSchema(PROMPT_SCHEMA)]
    suffix: str | None = None
    max_tokens: Annotated[Any, Checked(zero_or_max_tokens, {**TOKENS_SCHEMA, "minimum": 0})] = None
    logprobs: Annotated[Any, sampled("logprobs", **LOGPROBS_SCHEMA)] = None
    echo: bool | None = None
    special_tokens: bool | None = None
    """Whether the prompt may spell control tokens. The default is true."""

    best_of: Annotated[Any, only(1)] = None
