"""Attributes each token of a prompt to its origin: the template, the control tokens or a part of the request."""

import json
from collections.abc import Sequence
from itertools import accumulate

from granite_demo.prompts.taint import Span
from granite_demo.prompts.tokenizer import Tokenizer, control_tokens
from granite_demo.types.prompt_view import Origin, PromptPart


def locate(plain: str, spans: Sequence[Span]) -> tuple[Span, ...]:
    """Return the spans of ``plain``, given the spans that were read from the same prompt rendered with marks.

    If the joined spans differ from ``plain``, the template changed a text. Then each text is searched for, starting at
    the end of the one before it.
    """
    same = "".join(span.text for span in spans) == plain
    found: list[tuple[int, int, Origin]] = []
    position = 0
    for span in spans:
        start = position if same else plain.find(span.text, position)
        if start < 0 or not same and not span.text.strip():
            continue
        end = start + len(span.text)
        if span.origin != "template":
            if span.origin in ("tool", "document"):
                start, end = _whole_json(plain, found[-1][1] if found else 0, start, end)
            if not found or end > found[-1][1]:
                found.append((start, end, span.origin))
            position = end if not same else position + len(span.text)
        elif same:
            position = end
    return _filled(plain, found)


def _filled(plain: str, found: list[tuple[int, int, Origin]]) -> tuple[Span, ...]:
    spans, position = [], 0
    for start, end, origin in [*found, (len(plain), len(plain), "template")]:
        spans.append(Span("template", plain[position:start]))
        spans.append(Span(origin, plain[max(start, position) : end]))
        position = end
    return tuple(span for span in spans if span.text)


def _whole_json(plain: str, low: int, start: int, end: int) -> tuple[int, int]:
    """Return (start, end) of the outermost JSON value after ``low`` that contains ``plain[start:end]``.

    Returns the given ``start`` and ``end`` if there is none.
    """
    for index in range(low, start):
        if plain[index] in "{[":
            try:
                _, stop = json.JSONDecoder().raw_decode(plain, index)
            except (ValueError, RecursionError):
                continue
            if stop >= end:
                return index, stop
    return start, end


def parts_of(tokenizer: Tokenizer, pieces: Sequence[tuple[str, Sequence[Span]]]) -> tuple[PromptPart, ...]:
    """Return the parts of a prompt. Each of ``pieces``, a text and its spans, is encoded separately.

    A token belongs to the span in which it starts. The joined texts of the tokens equal the prompt. If a character
    takes several tokens, the first one has the whole character.
    """
    controls = {tokenizer.added_tokens_encoder[text] for text in control_tokens(tokenizer)}
    parts: list[tuple[Origin, list[tuple[int, str]]]] = []
    for text, spans in pieces:
        ends = list(accumulate(len(span.text) for span in spans))
        current = 0
        for index, start, shown in _tokens(tokenizer, text):
            while current < len(ends) - 1 and start >= ends[current]:
                current += 1
            origin: Origin = "control" if index in controls else spans[current].origin
            if not parts or parts[-1][0] != origin:
                parts.append((origin, []))
            parts[-1][1].append((index, shown))
    return tuple(PromptPart(origin, "".join(shown for _, shown in tokens), tuple(tokens)) for origin, tokens in parts)


def _tokens(tokenizer: Tokenizer, text: str) -> list[tuple[int, int, str]]:
    """Return (id, start, text) of each token of ``text``. ``start`` is a character index."""
    if not text:
        return []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens, done = [], 0
    for index, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
        # The offsets of some tokenizers exclude the space before a word.
        tokens.append((index, min(start, done), text[done : max(end, done)]))
        done = max(end, done)
    if tokens and done < len(text):
        index, start, shown = tokens[-1]
        tokens[-1] = (index, start, shown + text[done:])
    return tokens
