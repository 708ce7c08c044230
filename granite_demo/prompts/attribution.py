"""Where the tokens of a prompt come from. Knows neither templates nor requests."""

import json
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from granite_demo.prompts.taint import Stretch
from granite_demo.types.prompt_view import Origin, PromptPart


def locate(plain: str, stretches: Sequence[Stretch]) -> tuple[Stretch, ...]:
    """``stretches``, read from marks, as those of ``plain``, the same text without marks.

    Where the two differ, since the template changed what was written, each text is looked for from the last one on.
    """
    same = "".join(stretch.text for stretch in stretches) == plain
    found: list[tuple[int, int, Origin]] = []
    position = 0
    for stretch in stretches:
        start = position if same else plain.find(stretch.text, position)
        if start < 0 or not same and not stretch.text.strip():
            continue
        end = start + len(stretch.text)
        if stretch.origin != "template":
            if stretch.origin in ("tool", "document"):
                start, end = _whole_json(plain, found[-1][1] if found else 0, start, end)
            if not found or end > found[-1][1]:
                found.append((start, end, stretch.origin))
            position = end if not same else position + len(stretch.text)
        elif same:
            position = end
    return _filled(plain, found)


def _filled(plain: str, found: list[tuple[int, int, Origin]]) -> tuple[Stretch, ...]:
    stretches, position = [], 0
    for start, end, origin in [*found, (len(plain), len(plain), "template")]:
        stretches.append(Stretch("template", plain[position:start]))
        stretches.append(Stretch(origin, plain[max(start, position) : end]))
        position = end
    return tuple(stretch for stretch in stretches if stretch.text)


def _whole_json(plain: str, low: int, start: int, end: int) -> tuple[int, int]:
    """The outermost JSON value after ``low`` that holds the text from ``start`` to ``end``, or just that text."""
    for index in range(low, start):
        if plain[index] in "{[":
            try:
                _, stop = json.JSONDecoder().raw_decode(plain, index)
            except (ValueError, RecursionError):
                continue
            if stop >= end:
                return index, stop
    return start, end


def parts_of(tokenizer: Any, pieces: Sequence[tuple[str, Sequence[Stretch]]]) -> tuple[PromptPart, ...]:
    """The parts of a prompt of which each of ``pieces``, a text and its stretches, is encoded by itself.

    A token belongs to the part in which it starts. The texts of the tokens make up the text: of a character that takes
    several tokens, the first has all.
    """
    special = {index for text, index in tokenizer.added_tokens_encoder.items() if len(text) > 1 and text.strip()}
    parts: list[tuple[Origin, list[tuple[int, str]]]] = []
    for text, stretches in pieces:
        ends = list(accumulate(len(stretch.text) for stretch in stretches))
        current = 0
        for index, start, shown in _tokens(tokenizer, text):
            while current < len(ends) - 1 and start >= ends[current]:
                current += 1
            origin: Origin = "control" if index in special else stretches[current].origin
            if not parts or parts[-1][0] != origin:
                parts.append((origin, []))
            parts[-1][1].append((index, shown))
    return tuple(PromptPart(origin, "".join(shown for _, shown in tokens), tuple(tokens)) for origin, tokens in parts)


def _tokens(tokenizer: Any, text: str) -> list[tuple[int, int, str]]:
    """(id, where it starts, its text) of each token of ``text``."""
    if not text:
        return []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens, done = [], 0
    for index, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
        # Some tokenizers leave the space before a word out of its offsets.
        tokens.append((index, min(start, done), text[done : max(end, done)]))
        done = max(end, done)
    if tokens and done < len(text):
        index, start, shown = tokens[-1]
        tokens[-1] = (index, start, shown + text[done:])
    return tokens
