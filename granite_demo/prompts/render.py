"""Messages or raw text to token ids, by the tokenizer's own chat template. Knows neither engine nor model weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from granite_demo.errors import InvalidRequestError
from granite_demo.prompts.attribution import locate, parts_of
from granite_demo.prompts.chat_template import Write, template_inputs, template_of
from granite_demo.prompts.fim import fim_stretches, in_a_turn
from granite_demo.prompts.taint import Marker, Stretch
from granite_demo.prompts.tokenizer import controls_of, encode, encode_each, token_text, without_controls
from granite_demo.types.messages import Message
from granite_demo.types.prompt_view import PromptPart
from granite_demo.types.requests import GenerationRequest

__all__ = ["encode", "render", "render_chat", "render_completion", "render_parts", "render_text"]

_GAP = "\x7fgap\x7f"
"""Where a prompt goes in a chat template: no text of the template's own."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is encoded by itself, and where its text comes from."""

    text: str
    ids: list[int]
    stretches: tuple[Stretch, ...]


def render(tokenizer: Any, request: GenerationRequest) -> list[int]:
    """The prompt of any request, with what is written of its answer. Raises InvalidRequestError."""
    if request.prompt_ids is not None:
        return _checked_ids(tokenizer, request.prompt_ids)
    if request.prompt is not None:
        return _encoded(tokenizer, _raw_stretches(tokenizer, request))
    return [*render_chat(tokenizer, request), *_checked_ids(tokenizer, request.written)]


def render_chat(tokenizer: Any, request: GenerationRequest) -> list[int]:
    """The prompt of a conversation, with the opening of the answer. Raises InvalidRequestError.

    What people write, tools and documents included, is never taken for control tokens. Where it spells one, or where
    the prompt has more of them than the template itself wrote, each text is encoded by itself, and cut in two within
    what spells a control token.
    """
    return [token for piece in _pieces(tokenizer, request) for token in piece.ids]


def render_parts(tokenizer: Any, request: GenerationRequest) -> tuple[PromptPart, ...]:
    """The prompt of any request, told apart by who wrote it; its ids are those that are sent."""
    if request.prompt_ids is not None:
        ids = _checked_ids(tokenizer, request.prompt_ids)
        tokens = tuple((index, token_text(tokenizer, index)) for index in ids)
        return (PromptPart("user", "".join(text for _, text in tokens), tokens),)
    if request.prompt is not None:
        stretches = _raw_stretches(tokenizer, request)
        return parts_of(tokenizer, [(stretch.text, (stretch,)) for stretch in stretches])
    pieces = _pieces(tokenizer, request, located=True)
    return parts_of(tokenizer, [(piece.text, piece.stretches) for piece in pieces])


def render_completion(tokenizer: Any, prompt: str, special_tokens: bool = False) -> list[int]:
    """The token ids of raw text; control tokens that it spells are such only where ``special_tokens`` says so."""
    return _encoded(tokenizer, _written(tokenizer, prompt, special_tokens))


def _written(tokenizer: Any, text: str, special_tokens: bool) -> list[Stretch]:
    pieces = [text] if special_tokens else without_controls(tokenizer, text)
    return [Stretch("user", piece) for piece in pieces]


def _raw_stretches(tokenizer: Any, request: GenerationRequest) -> list[Stretch]:
    """The prompt of a request without messages, in stretches to be encoded each by itself."""
    prompt = request.prompt or ""
    if request.suffix is None:
        return _written(tokenizer, prompt, request.special_tokens)
    gap = fim_stretches(tokenizer, prompt, request.suffix)
    if not in_a_turn(tokenizer):
        return gap
    turn = render_text(tokenizer, GenerationRequest((Message("user", _GAP),)))
    before, found, after = turn.partition(_GAP)
    return [Stretch("template", before), *gap, Stretch("template", after)] if found else gap


def _encoded(tokenizer: Any, stretches: Sequence[Stretch]) -> list[int]:
    texts = [stretch.text for stretch in stretches if stretch.text]
    return [token for ids in encode_each(tokenizer, texts) for token in ids]


def _checked_ids(tokenizer: Any, prompt_ids: Sequence[int]) -> list[int]:
    """``prompt_ids`` as they are. Raises InvalidRequestError for one that is no token's."""
    size = len(tokenizer)
    for index in prompt_ids:
        if not 0 <= index < size:
            raise InvalidRequestError(f"{index} is not the id of a token; this model has those from 0 to {size - 1}.")
    return list(prompt_ids)


def _pieces(tokenizer: Any, request: GenerationRequest, located: bool = False) -> list[_Piece]:
    """``located``: with the stretches of a prompt that is encoded as one piece, too."""
    controls = controls_of(tokenizer)
    marker = Marker(controls)
    plain = render_text(tokenizer, request)
    stretches = _marked(tokenizer, request, marker)
    wanted = {tokenizer.added_tokens_encoder[text] for text in controls}

    def count(ids: list[int]) -> int:
        return sum(token in wanted for token in ids)

    ids = encode(tokenizer, plain)
    by_template = sum(count(encode(tokenizer, stretch.text)) for stretch in stretches if not stretch.foreign)
    spelled = any(marker.spells_control(stretch.text) for stretch in stretches if stretch.foreign)
    if not spelled and count(ids) == by_template:
        if located and "".join(stretch.text for stretch in stretches) != plain:
            stretches = _marked(tokenizer, request, marker, inside=True)
        return [_Piece(plain, ids, locate(plain, stretches) if located else ())]
    texts = [
        Stretch(stretch.origin, text)
        for stretch in stretches
        for text in (marker.cut(stretch.text) if stretch.foreign else [stretch.text])
    ]
    texts = [stretch for stretch in texts if stretch.text]
    encoded = encode_each(tokenizer, [stretch.text for stretch in texts])
    return [_Piece(stretch.text, ids, (stretch,)) for stretch, ids in zip(texts, encoded, strict=True)]


def _marked(tokenizer: Any, request: GenerationRequest, marker: Marker, inside: bool = False) -> Sequence[Stretch]:
    def write(origin: Any, text: str, key: bool) -> str:
        return marker.mark_key(origin, text) if key else marker.mark(origin, text, inside)

    return tuple(marker.read(render_text(tokenizer, request, write)))


def render_text(tokenizer: Any, request: GenerationRequest, write: Write = lambda origin, text, key: text) -> str:
    """The prompt of a conversation as text, each text in it as ``write`` changes it. Raises InvalidRequestError."""
    template = template_of(tokenizer, bool(request.tools))
    if not template:
        raise InvalidRequestError(
            "This model has no chat template, so it cannot chat. Use the Completion tab, or load an instruct model."
        )
    try:
        try:
            return _apply(tokenizer, template_inputs(request, template, write))
        except Exception:
            if not any(call.error for message in request.messages for call in message.tool_calls):
                raise
            # Some templates go through the arguments of each call, and a call that cannot be read has but text.
            return _apply(tokenizer, template_inputs(request, template, write, objects=True))
    except InvalidRequestError:
        raise
    except Exception as error:
        # Templates are code of the checkpoint's author and raise whatever Jinja does.
        raise InvalidRequestError(f"The model's chat template refuses this conversation: {error}") from error


def _apply(tokenizer: Any, inputs: dict[str, Any]) -> str:
    rendered: str = tokenizer.apply_chat_template(**inputs, add_generation_prompt=True, tokenize=False)
    return rendered
