"""The answer to the last turn of a conversation, streamed into the chatbot.

The visitor may change the conversation while the answer grows, so the answer is a turn of its own until it ends, and
the browser puts it into the conversation. It keeps it meanwhile: a page that is closed or reloaded loses nothing.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from granite_demo.backend import Backend
from granite_demo.chat import conversation as conversations
from granite_demo.chat.answer import Answer
from granite_demo.chat.bundle import made
from granite_demo.chat.conversation import Conversation, Turn
from granite_demo.chat.documents import check
from granite_demo.chat.tools import parse_tools
from granite_demo.errors import InvalidRequestError
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams
from granite_demo.types.stop import Stop
from granite_demo.ui.chat.messages import ChatHistory, chat_messages, growing_turn, turn_messages
from granite_demo.ui.chat.sources import sent
from granite_demo.ui.settings import to_sampling
from granite_demo.ui.streaming import Snapshot, snapshots

BEGINNING = 40
"""Characters of a question by which it is known again."""
KEEP_SECONDS = 2.0
"""Between two states of a growing answer that the browser keeps."""


@dataclass(frozen=True, slots=True)
class Update:
    """What to show of a growing answer, and now and then what to keep of it."""

    history: ChatHistory
    pending: dict[str, Any] | None = None


async def respond(
    backend: Backend, conversation: Conversation, values: tuple[Any, ...], stop: Stop, begun: Any = None
) -> AsyncGenerator[Update]:
    """Yield the growing answer; ``values`` are those of the Settings tab. The last update is kept.

    ``begun`` is what made an answer that was cut: this one begins with its tokens.
    """
    request: GenerationRequest | None = None

    def build() -> GenerationRequest:
        nonlocal request
        request = build_request(conversation, to_sampling(*values))
        if begun:
            request = replace(request, written=written(begun, backend.status().name))
        return request

    # Off the event loop: the footnotes of cited answers take time to find.
    past, _ = await asyncio.to_thread(chat_messages, conversation, busy=True)
    turn_id = conversations.new_id()
    given = sent(conversation.documents)
    shot = Snapshot(Answer(), "Waiting for the first token", "note", 0.0)
    yield Update([*past, *turn_messages(conversation, growing_turn(turn_id, conversation.head, shot), busy=True)])
    kept = time.monotonic()
    async with aclosing(snapshots(backend, build, stop)) as shots:
        async for shot in shots:
            turn = growing_turn(turn_id, conversation.head, shot)
            history = [*past, *turn_messages(conversation, turn, busy=True)]
            if time.monotonic() - kept < KEEP_SECONDS or not (turn.content or turn.thinking):
                yield Update(history)
                continue
            kept = time.monotonic()
            interrupted = turn.model_copy(update={"note": f"{turn.note} · interrupted", "sent": given})
            yield Update(history, pending(conversation, interrupted))
    turn = growing_turn(turn_id, conversation.head, shot).model_copy(update={"sent": given})
    if request is not None:
        told = [turn.note, left_out(request, shot.answer.dropped), advice(request, shot.answer)]
        note = " · ".join(filter(None, told))
        turn = turn.model_copy(update={"made": made(request, shot.answer.finish), "note": note})
    yield Update([*past, *turn_messages(conversation, turn, busy=True)], pending(conversation, turn))


def written(made: Any, model: str) -> tuple[int, ...]:
    """The tokens of an answer, from what ``made`` it. Raises InvalidRequestError where ``model`` did not write them."""
    traced = made.get("provenance") or {}
    if traced.get("model", "") != model:
        raise InvalidRequestError("Another model wrote the beginning of this answer, so it cannot go on. Retry it.")
    ids = made.get("token_ids")
    if not isinstance(ids, list) or not all(type(index) is int for index in ids):
        raise InvalidRequestError("The tokens of this answer are not known any more, so it cannot go on. Retry it.")
    return tuple(ids)


def left_out(request: GenerationRequest, count: int) -> str:
    """The first and the last question among the ``count`` oldest messages; empty where none was left out."""
    messages = [message for message in request.messages if message.role != "system"][:count]
    questions = [_beginning(message.content) for message in messages if message.role == "user"]
    if not questions:
        return ""
    if len(questions) == 1:
        return f"the question “{questions[0]}”"
    return f"from “{questions[0]}” to “{questions[-1]}”"


def _beginning(text: str) -> str:
    line = " ".join(text.split()).replace(" · ", " ")  # which parts what the note tells
    return line if len(line) <= BEGINNING else f"{line[:BEGINNING].rstrip()}…"


def advice(request: GenerationRequest, answer: Answer) -> str:
    """What to do about an answer that was cut; empty for any other, and where its note says so already."""
    finish, limit = answer.finish, request.sampling.max_tokens
    if finish is None or finish.reason != "length" or not answer.text:
        return ""
    if limit is not None and finish.usage.completion_tokens >= limit:
        return "for more, raise Max new tokens in the Settings tab"
    return "the context is full: start a new conversation for more"


def pending(conversation: Conversation, turn: Turn) -> dict[str, Any]:
    """An answer on its way into its conversation."""
    return {"conversation": conversation.id, "turn": turn.model_dump(mode="json", exclude_defaults=True)}


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
