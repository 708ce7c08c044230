"""A conversation from the page to the request that asks its next question."""

from granite_demo import conversations
from granite_demo.conversations import Conversation
from granite_demo.documents import check
from granite_demo.sampling_params import SamplingParams
from granite_demo.tools import parse_tools
from granite_demo.types import GenerationRequest


def build_request(conversation: Conversation, sampling: SamplingParams, text: str = "") -> GenerationRequest:
    """The branch that is shown, with ``text`` as the next question if there is one. Raises InvalidRequestError."""
    if text.strip():
        conversation = conversations.add(conversation, "user", content=text)
    documents = conversations.documents_of(conversation)
    check(documents)
    return GenerationRequest(
        conversations.to_messages(conversation),
        sampling=sampling,
        tools=parse_tools(conversation.tools),
        documents=documents,
        controls=conversations.controls_of(conversation),
        overflow=conversation.overflow,
    )
