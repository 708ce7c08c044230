"""A conversation to the request for its next answer."""

from typing import Any

from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation
from granite_demo.chat.documents import check
from granite_demo.chat.tools import parse_tools
from granite_demo.errors import InvalidRequestError
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams


def build_request(conversation: Conversation, sampling: SamplingParams, text: str = "") -> GenerationRequest:
    """The branch that is shown, with ``text`` as the next question if there is one. Raises InvalidRequestError."""
    if text.strip():
        conversation = conversations.add(conversation, "user", content=text)
    documents = conversation.documents
    check(documents)
    return GenerationRequest(
        conversations.to_messages(conversation),
        sampling=sampling,
        tools=parse_tools(conversation.tools),
        documents=documents,
        controls=conversation.controls,
        overflow=conversation.overflow,
    )


def written_tokens(made: dict[str, Any], model: str) -> tuple[int, ...]:
    """The token ids of an answer, from what ``made`` it. Raises InvalidRequestError unless ``model`` wrote it."""
    provenance = made.get("provenance") or {}
    if provenance.get("model", "") != model:
        raise InvalidRequestError("Another model wrote the beginning of this answer, so it cannot go on. Retry it.")
    ids = made.get("token_ids")
    if not isinstance(ids, list) or not all(type(index) is int for index in ids):
        raise InvalidRequestError("The tokens of this answer are not known any more, so it cannot go on. Retry it.")
    return tuple(ids)
