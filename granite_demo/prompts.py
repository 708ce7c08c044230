"""Messages or raw text to token ids, by the tokenizer's own chat template. Knows neither engine nor model weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from granite_demo.errors import InvalidRequestError
from granite_demo.marks import Marker, Stretch
from granite_demo.origins import locate, parts_of
from granite_demo.template_inputs import Write, template_inputs, template_of
from granite_demo.types import GenerationRequest, PromptPart


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is encoded by itself, and where its text comes from."""

    text: str
    ids: list[int]
    stretches: tuple[Stretch, ...]


def render(tokenizer: Any, request: GenerationRequest) -> list[int]:
    """The prompt of any request. Raises InvalidRequestError."""
    if request.prompt is not None:
        return render_completion(tokenizer, request.prompt)
    return render_chat(tokenizer, request)


def render_chat(tokenizer: Any, request: GenerationRequest) -> list[int]:
    """The prompt of a conversation, with the opening of the answer. Raises InvalidRequestError.

    What people write, tools and documents included, is never taken for control tokens. Where it spells one, or where
    the prompt has more of them than the template itself wrote, each text is encoded by itself, and cut in two within
    what spells a control token.
    """
    return [token for piece in _pieces(tokenizer, request) for token in piece.ids]


def render_parts(tokenizer: Any, request: GenerationRequest) -> tuple[PromptPart, ...]:
    """The prompt of any request, told apart by who wrote it; its ids are those that are sent."""
    if request.prompt is not None:
        return parts_of(tokenizer, [(request.prompt, (Stretch("user", request.prompt),))])
    pieces = _pieces(tokenizer, request, located=True)
    return parts_of(tokenizer, [(piece.text, piece.stretches) for piece in pieces])


def render_completion(tokenizer: Any, prompt: str) -> list[int]:
    """The token ids of raw text, which may spell control tokens on purpose."""
    return encode(tokenizer, prompt)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text`` with nothing added at either end."""
    if not text:
        return []
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _pieces(tokenizer: Any, request: GenerationRequest, located: bool = False) -> list[_Piece]:
    """``located``: with the stretches of a prompt that is encoded as one piece, too."""
    controls = [text for text in tokenizer.added_tokens_encoder if len(text) > 1 and text.strip()]
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
    # In one call: somebody may spell thousands of them.
    encoded = tokenizer([stretch.text for stretch in texts], add_special_tokens=False).input_ids if texts else []
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
    except Exception as error:
        # Templates are code of the checkpoint's author and raise whatever Jinja does; so do deep objects.
        raise InvalidRequestError(f"The model's chat template refuses this conversation: {error}") from error


def _apply(tokenizer: Any, inputs: dict[str, Any]) -> str:
    rendered: str = tokenizer.apply_chat_template(**inputs, add_generation_prompt=True, tokenize=False)
    return rendered
