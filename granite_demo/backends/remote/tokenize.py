"""How many tokens a prompt takes on another server, where it has vLLM's /tokenize."""

from typing import Any

from granite_demo.backends.remote.endpoints import Endpoint
from granite_demo.backends.remote.errors import message_of, rejected
from granite_demo.backends.remote.families import find_family
from granite_demo.backends.remote.request import to_body
from granite_demo.errors import InvalidRequestError
from granite_demo.types.prompt_view import PromptView
from granite_demo.types.requests import GenerationRequest

TOLD = ("messages", "prompt", "tools", "chat_template_kwargs")
"""The fields of a request that make its prompt, as /tokenize takes them."""

SECONDS = 5.0
"""For an answer: the page asks while somebody writes."""


async def count_tokens(client: Any, one: Endpoint, request: GenerationRequest, model: str) -> PromptView | None:
    """The prompt's length without its parts; None where the server cannot tell.

    Raises InvalidRequestError where the server has no template for a conversation.
    """
    answer = await _tokenized(client, one, request, model)
    length, count = answer.get("max_model_len"), answer.get("count")
    return PromptView((), count, 0, length) if isinstance(length, int) and isinstance(count, int) else None


async def token_ids(client: Any, one: Endpoint, request: GenerationRequest, model: str) -> tuple[int, ...]:
    """The prompt's token ids; none where the server cannot tell. Raises as ``count_tokens`` does."""
    ids = (await _tokenized(client, one, request, model)).get("tokens")
    return tuple(ids) if isinstance(ids, list) and all(isinstance(index, int) for index in ids) else ()


async def _tokenized(client: Any, one: Endpoint, request: GenerationRequest, model: str) -> dict[str, Any]:
    """What the server answers; empty where it cannot."""
    if "tokenize" in one.unknown or request.documents or request.prompt_ids is not None:
        return {}
    fields = to_body(request, model, find_family(model), one.kind).fields
    body = {"model": model, **{name: fields[name] for name in TOLD if name in fields}}
    try:
        options = {"timeout": SECONDS}
        answer = await client.post(f"{one.shown}/tokenize", body=body, cast_to=object, options=options)
        return answer if isinstance(answer, dict) else {}
    except Exception as error:  # it is only a question beside the request itself
        if rejected(error) and "chat template" in message_of(error).lower():
            raise InvalidRequestError(message_of(error, one.key)) from error
        if getattr(error, "status_code", None) in (404, 405, 501):
            one.unknown |= {"tokenize"}
        return {}
