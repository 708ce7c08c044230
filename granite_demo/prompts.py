"""Messages or raw text to token ids, by the tokenizer's own chat template. Knows neither engine nor model weights."""

import secrets
from typing import Any

from granite_demo.errors import InvalidRequestError
from granite_demo.types import Message


def render_chat(tokenizer: Any, messages: tuple[Message, ...]) -> list[int]:
    """The prompt of a conversation, with the opening of the answer. Raises InvalidRequestError.

    What people write is never taken for control tokens: a message that contains the text of one is rendered as a
    placeholder first, and its text is encoded by itself with the special tokens split up.
    """
    if not tokenizer.chat_template:
        raise InvalidRequestError(
            "This model has no chat template, so it cannot chat. Use the Completion tab, or load an instruct model."
        )
    hidden: dict[str, str] = {}

    def shield(text: str) -> str:
        if not any(token in text for token in tokenizer.added_tokens_encoder):
            return text
        placeholder = secrets.token_hex(16)
        hidden[placeholder] = text
        return placeholder

    turns = [{"role": message.role, "content": shield(message.content)} for message in messages]
    try:
        rendered: str = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception as error:
        # Templates are code of the checkpoint's author and raise whatever Jinja does.
        raise InvalidRequestError(f"The model's chat template refuses this conversation: {error}") from error
    ids: list[int] = []
    for placeholder, text in hidden.items():
        before, rendered = rendered.split(placeholder, 1)
        ids += encode(tokenizer, before) + encode(tokenizer, text, split_special_tokens=True)
    return ids + encode(tokenizer, rendered)


def render_completion(tokenizer: Any, prompt: str) -> list[int]:
    """The token ids of raw text, which may spell control tokens on purpose."""
    return encode(tokenizer, prompt)


def encode(tokenizer: Any, text: str, *, split_special_tokens: bool = False) -> list[int]:
    """Token ids of ``text`` with nothing added at either end."""
    if not text:
        return []
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens).input_ids
    return ids
