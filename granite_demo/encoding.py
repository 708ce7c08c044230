"""Texts to token ids, with or without the control tokens that they spell. Knows neither requests nor templates."""

from collections.abc import Sequence
from typing import Any

from granite_demo.marks import Marker


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text`` with nothing added at either end; what spells a control token is one."""
    if not text:
        return []
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def encode_each(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """``encode`` of each text, in one call: somebody may spell thousands of control tokens."""
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []
    return ids


def controls_of(tokenizer: Any) -> list[str]:
    """How the control tokens are spelled, tool and thinking marks included."""
    return [text for text in tokenizer.added_tokens_encoder if len(text) > 1 and text.strip()]


def without_controls(tokenizer: Any, text: str) -> list[str]:
    """``text`` in pieces to be encoded each by itself, none of which spells a control token."""
    return [piece for piece in Marker(controls_of(tokenizer)).cut(text) if piece]
