"""Fields whose values ``SamplingParams`` checks, so that each is refused here in the words that the page has for it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from granite_demo.errors import InvalidRequestError
from granite_demo.sampling_params import SamplingParams


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


def only(*values: Any) -> Checked:
    """A field that takes these values alone. 1 is not true here, as it is for Python."""

    def check(value: Any) -> Any:
        if not any(value == known and type(value) is type(known) for known in values):
            allowed = " or ".join(map(json.dumps, values))
            raise PydanticCustomError("only", "It can only be {allowed} here", {"allowed": allowed})
        return value

    return Checked(check, {"enum": list(values)})


def check_bias(value: Any) -> Any:
    """OpenAI's object of token ids to the pairs of SamplingParams. Raises InvalidRequestError."""
    if not isinstance(value, dict):
        raise InvalidRequestError("logit_bias must be an object of token ids and numbers.")
    pairs = tuple((int(key) if key.isdecimal() and len(key) < 10 else key, bias) for key, bias in value.items())
    return SamplingParams(logit_bias=pairs).logit_bias


def zero_or_max_tokens(value: Any) -> Any:
    """``max_tokens`` where an echo makes sense of 0."""
    return 0 if value == 0 and not isinstance(value, bool) else SamplingParams(max_tokens=value).max_tokens
