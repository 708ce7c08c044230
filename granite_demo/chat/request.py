"""Converts a conversation to the request for its next answer."""

from typing import Any

from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation
from granite_demo.chat.documents import check
from granite_demo.chat.tools import parse_tools
from granite_demo.errors import InvalidRequestError
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams


def build_request(conversation: Conversation, sampling: SamplingParams, text: str = "") -> GenerationRequest:
    """Return the request for the branch that is shown, with ``text`` as the next question.

    Raises InvalidRequestError.
    """
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
    """Return the token ids of the answer with the record ``made``.

    Raises InvalidRequestError if ``model`` did not generate them, or if they are not known.
    """
    provenance = made.get("provenance") or {}
    if provenance.get("model", "") != model:
        raise InvalidRequestError("This answer cannot be continued, because another model began it. Retry it.")
    ids = made.get("token_ids")
    if not isinstance(ids, list) or not all(type(index) is int for index in ids):
        raise InvalidRequestError("This answer cannot be continued, because its tokens were not kept. Retry it.")
    return tuple(ids)
