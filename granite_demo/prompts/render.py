"""Renders a request to the token ids of its prompt. Conversations use the tokenizer's own chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from granite_demo.errors import InvalidRequestError
from granite_demo.prompts.attribution import locate, parts_of
from granite_demo.prompts.chat_template import CONTINUE_HERE, Write, template_inputs, template_of
from granite_demo.prompts.fim import fim_spans, in_a_turn
from granite_demo.prompts.jinja_chat import apply_chat_template
from granite_demo.prompts.taint import Span, TaintMarker
from granite_demo.prompts.tokenizer import (
    Tokenizer,
    control_tokens,
    encode,
    encode_each,
    split_control_tokens,
    token_text,
)
from granite_demo.types.messages import Message
from granite_demo.types.prompt_view import PromptPart
from granite_demo.types.requests import GenerationRequest

_GAP = "\x7fgap\x7f"
"""A placeholder for the prompt in a rendered template. No template contains this text."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of the prompt that is encoded separately, with the spans of its text."""

    text: str
    ids: list[int]
    spans: tuple[Span, ...]


def render(tokenizer: Tokenizer, request: GenerationRequest) -> list[int]:
    """Return the prompt of any request, and the tokens of its answer that are already written.

    Raises InvalidRequestError.
    """
    if request.prompt_ids is not None:
        return _checked_ids(tokenizer, request.prompt_ids)
    if request.prompt is not None:
        return _encoded(tokenizer, _raw_spans(tokenizer, request))
    return [*render_chat(tokenizer, request), *_checked_ids(tokenizer, request.written)]


def answer_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Return tokens for the ``text`` of an answer, none of which is a control token.

    They can differ from those that the model chose.
    """
    return tuple(_encoded(tokenizer, _written(tokenizer, text, special_tokens=False)))


def render_chat(tokenizer: Tokenizer, request: GenerationRequest) -> list[int]:
    """Return the prompt of a conversation with the start of the answer. Raises InvalidRequestError.

    Text from the request, tools and documents included, never becomes a control token. If it spells one, or if the
    prompt has more control tokens than the template wrote, each text is encoded separately and is split inside each
    spelled control token.
    """
    return [token for piece in _pieces(tokenizer, request) for token in piece.ids]


def render_parts(tokenizer: Tokenizer, request: GenerationRequest) -> tuple[PromptPart, ...]:
    """Return the prompt of any request in parts by origin. The ids are those that ``render`` returns.

    Raises InvalidRequestError.
    """
    if request.prompt_ids is not None:
        ids = _checked_ids(tokenizer, request.prompt_ids)
        tokens = tuple((index, token_text(tokenizer, index)) for index in ids)
        return (PromptPart("user", "".join(text for _, text in tokens), tokens),)
    if request.prompt is not None:
        spans = _raw_spans(tokenizer, request)
        return parts_of(tokenizer, [(span.text, (span,)) for span in spans])
    pieces = _pieces(tokenizer, request, located=True)
    return parts_of(tokenizer, [(piece.text, piece.spans) for piece in pieces])


def _written(tokenizer: Tokenizer, text: str, special_tokens: bool) -> list[Span]:
    pieces = [text] if special_tokens else split_control_tokens(tokenizer, text)
    return [Span("user", piece) for piece in pieces]


def _raw_spans(tokenizer: Tokenizer, request: GenerationRequest) -> list[Span]:
    """Return the spans of a prompt without messages, which must be encoded separately."""
    prompt = request.prompt or ""
    if request.suffix is None:
        return _written(tokenizer, prompt, request.special_tokens)
    gap = fim_spans(tokenizer, prompt, request.suffix)
    if not in_a_turn(tokenizer):
        return gap
    turn = render_text(tokenizer, GenerationRequest((Message("user", _GAP),)))
    before, found, after = turn.partition(_GAP)
    return [Span("template", before), *gap, Span("template", after)] if found else gap


def _encoded(tokenizer: Tokenizer, spans: Sequence[Span]) -> list[int]:
    texts = [span.text for span in spans if span.text]
    return [token for ids in encode_each(tokenizer, texts) for token in ids]


def _checked_ids(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> list[int]:
    """Return ``prompt_ids`` unchanged. Raises InvalidRequestError if the tokenizer does not have one of them."""
    size = len(tokenizer)
    for index in prompt_ids:
        if not 0 <= index < size:
            raise InvalidRequestError(f"{index} is not a token id; this model has ids from 0 to {size - 1}.")
    return list(prompt_ids)


def _pieces(tokenizer: Tokenizer, request: GenerationRequest, located: bool = False) -> list[_Piece]:
    """Return the pieces of the prompt of a conversation.

    With ``located``, a prompt that is encoded as one piece also has its spans.
    """
    controls = control_tokens(tokenizer)
    marker = TaintMarker(controls)
    plain = render_text(tokenizer, request)
    spans = _marked(tokenizer, request, marker)
    control_ids = {tokenizer.added_tokens_encoder[text] for text in controls}

    def count(ids: list[int]) -> int:
        return sum(token in control_ids for token in ids)

    ids = encode(tokenizer, plain)
    by_template = sum(count(encode(tokenizer, span.text)) for span in spans if not span.untrusted)
    spelled = any(marker.spells_control(span.text) for span in spans if span.untrusted)
    if not spelled and count(ids) == by_template:
        if located and "".join(span.text for span in spans) != plain:
            spans = _marked(tokenizer, request, marker, inside=True)
        return [_Piece(plain, ids, locate(plain, spans) if located else ())]
    texts = [
        Span(span.origin, text) for span in spans for text in (marker.cut(span.text) if span.untrusted else [span.text])
    ]
    texts = [span for span in texts if span.text]
    encoded = encode_each(tokenizer, [span.text for span in texts])
    return [_Piece(span.text, ids, (span,)) for span, ids in zip(texts, encoded, strict=True)]


def _marked(
    tokenizer: Tokenizer, request: GenerationRequest, marker: TaintMarker, inside: bool = False
) -> Sequence[Span]:
    def write(origin: Any, text: str, key: bool) -> str:
        return marker.mark_key(origin, text) if key else marker.mark(origin, text, inside)

    return tuple(marker.read(render_text(tokenizer, request, write)))


def render_text(tokenizer: Tokenizer, request: GenerationRequest, write: Write = lambda origin, text, key: text) -> str:
    """Return the prompt of a conversation as text. Each text in the request passes through ``write``.

    Raises InvalidRequestError.
    """
    template = template_of(tokenizer, bool(request.tools))
    if not template:
        raise InvalidRequestError(
            "This model has no chat template, so it cannot chat. Use the Completion tab, or load an instruct model."
        )
    continued = request.continued
    try:
        try:
            return _to_end(apply_template(tokenizer, **template_inputs(request, template, write)), continued)
        except Exception:
            if not any(message.tool_calls for message in request.messages):
                raise
            # Some templates iterate over the arguments of each call, but the arguments of a malformed call are text.
            inputs = template_inputs(request, template, write, objects=True)
            return _to_end(apply_template(tokenizer, **inputs), continued)
    except InvalidRequestError:
        raise
    except Exception as error:
        # Templates are code of the checkpoint's author and can raise anything.
        raise InvalidRequestError(f"The model's chat template rejects this conversation: {error}") from error


def _to_end(text: str, continued: bool) -> str:
    """Cut a prompt that ends with the start of an answer after that. Raises ValueError if the template lost it."""
    if not continued:
        return text
    before, found, _ = text.rpartition(CONTINUE_HERE)
    if not found:
        raise ValueError("It does not show the last message of the assistant.")
    return before


def apply_template(tokenizer: Tokenizer, **inputs: Any) -> str:
    """Return the text of the chat template of ``tokenizer`` for ``inputs``, such as ``conversation`` and ``tools``.

    It is that of transformers' ``apply_chat_template``, where a template can run without end or take all memory. Raises
    the errors of ``jinja_chat``.
    """
    template = template_of(tokenizer, inputs.get("tools") is not None)
    given = {**tokenizer.special_tokens_map, "add_generation_prompt": True, **inputs}
    return apply_chat_template(template, **given)
