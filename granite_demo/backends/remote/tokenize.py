"""Counts the tokens of a prompt on another server that has the route /tokenize of vLLM."""

from typing import Any

from granite_demo.backends.remote.endpoints import Endpoint
from granite_demo.backends.remote.errors import message_of, rejected
from granite_demo.backends.remote.families import find_family
from granite_demo.backends.remote.request import to_body
from granite_demo.errors import InvalidRequestError
from granite_demo.types.prompt_view import PromptView
from granite_demo.types.requests import GenerationRequest

PROMPT_FIELDS = ("messages", "prompt", "tools", "chat_template_kwargs")
"""The fields of a request that determine its prompt and that /tokenize accepts."""

SECONDS = 5.0
"""The timeout. The page counts tokens while the visitor types."""


async def count_tokens(client: Any, endpoint: Endpoint, request: GenerationRequest, model: str) -> PromptView | None:
    """Return a view with only the token count of the prompt, or None if the server cannot tokenize.

    Raises InvalidRequestError if the model on the server has no chat template.
    """
    answer = await _tokenized(client, endpoint, request, model)
    length, count = answer.get("max_model_len"), answer.get("count")
    return PromptView((), count, 0, length) if isinstance(length, int) and isinstance(count, int) else None


async def token_ids(client: Any, endpoint: Endpoint, request: GenerationRequest, model: str) -> tuple[int, ...]:
    """Return the token ids of the prompt, or none if the server cannot tokenize. Raises as ``count_tokens``."""
    ids = (await _tokenized(client, endpoint, request, model)).get("tokens")
    return tuple(ids) if isinstance(ids, list) and all(isinstance(index, int) for index in ids) else ()


async def _tokenized(client: Any, endpoint: Endpoint, request: GenerationRequest, model: str) -> dict[str, Any]:
    """Return the answer of the server, or an empty one if it cannot tokenize."""
    if "tokenize" in endpoint.unsupported or request.documents or request.prompt_ids is not None:
        return {}
    fields = to_body(request, model, find_family(model), endpoint.kind).fields
    body = {"model": model, **{name: fields[name] for name in PROMPT_FIELDS if name in fields}}
    try:
        options = {"timeout": SECONDS}
        answer = await client.post(f"{endpoint.address}/tokenize", body=body, cast_to=object, options=options)
        return answer if isinstance(answer, dict) else {}
    except Exception as error:  # a count is optional, so other failures are ignored
        if rejected(error) and "chat template" in message_of(error).lower():
            raise InvalidRequestError(message_of(error, endpoint.key)) from error
        if getattr(error, "status_code", None) in (404, 405, 501):
            endpoint.unsupported |= {"tokenize"}
        return {}
