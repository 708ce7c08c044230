"""Messages or raw text to token ids, by the tokenizer's own chat template. Knows neither engine nor model weights."""

import re
from itertools import chain
from typing import Any

from granite_demo.errors import InvalidRequestError
from granite_demo.messages import Message


def render_chat(tokenizer: Any, messages: tuple[Message, ...]) -> list[int]:
    """The prompt of a conversation, with the opening of the answer. Raises InvalidRequestError.

    What people write is never taken for control tokens. Where the prompt has more of them than the template itself
    wrote, each message is encoded by itself, with what spells a control token cut in two.
    """
    if not tokenizer.chat_template:
        raise InvalidRequestError(
            "This model has no chat template, so it cannot chat. Use the Completion tab, or load an instruct model."
        )
    controls = [text for text in tokenizer.added_tokens_encoder if len(text) > 1 and text.strip()]
    ids = encode(tokenizer, _apply(tokenizer, messages))
    # Private-use characters mark what people wrote: templates may repeat, reorder, trim or drop it, but leave these.
    marked = tuple(Message(message.role, f"{BEGIN}{_unmark(message.content)}{END}") for message in messages)
    pieces = re.split(f"{BEGIN}([^{END}]*){END}", _apply(tokenizer, marked))
    template = [encode(tokenizer, piece) for piece in pieces[::2]]
    if _count(tokenizer, ids, controls) == sum(_count(tokenizer, part, controls) for part in template):
        return ids
    written = [[encode(tokenizer, part) for part in _cut(piece, controls)] for piece in pieces[1::2]]
    ids = template[0]
    for message, following in zip(written, template[1:], strict=True):
        ids = [*ids, *chain(*message), *following]
    return ids


BEGIN, END, CUT = "\ue000", "\ue001", "\ue002"


def _apply(tokenizer: Any, messages: tuple[Message, ...]) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        rendered: str = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception as error:
        # Templates are code of the checkpoint's author and raise whatever Jinja does.
        raise InvalidRequestError(f"The model's chat template refuses this conversation: {error}") from error
    return rendered


def _unmark(text: str) -> str:
    return re.sub(f"[{BEGIN}{END}{CUT}]", "", text)


def _cut(text: str, controls: list[str]) -> list[str]:
    for control in controls:
        text = text.replace(control, f"{control[0]}{CUT}{control[1:]}")
    return text.split(CUT)


def _count(tokenizer: Any, ids: list[int], controls: list[str]) -> int:
    wanted = {tokenizer.added_tokens_encoder[control] for control in controls}
    return sum(token in wanted for token in ids)


def render_completion(tokenizer: Any, prompt: str) -> list[int]:
    """The token ids of raw text, which may spell control tokens on purpose."""
    return encode(tokenizer, prompt)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text`` with nothing added at either end."""
    if not text:
        return []
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids
