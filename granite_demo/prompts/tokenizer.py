"""Converts text to token ids, with or without the control tokens that it spells, and token ids to text."""

from collections.abc import Collection, Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from granite_demo.prompts.taint import TaintMarker
from granite_demo.types.logprobs import ScoredToken, Token, TokenAlternative


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of ``text`` without added tokens at the ends. The text of a control token becomes one."""
    if not text:
        return []
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def encode_each(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Encode each text in one call, because a request can have thousands of pieces."""
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []
    return ids


def control_tokens(tokenizer: Any) -> list[str]:
    """Return the texts of the control tokens, which include the markers of tool calls and reasoning."""
    return [text for text in tokenizer.added_tokens_encoder if len(text) > 1 and text.strip()]


def split_control_tokens(tokenizer: Any, text: str) -> list[str]:
    """Split ``text`` into pieces that spell no control token if they are encoded separately."""
    return [piece for piece in TaintMarker(control_tokens(tokenizer)).cut(text) if piece]


REPLACEMENT = "\ufffd"


class Detokenizer:
    """Decodes the token ids of one answer incrementally. The joined results equal the decoded answer without U+FFFD.

    A byte-level token can end inside a character. ``DecodeStream`` holds back such tokens until the character is
    complete. Bytes that never become a character are dropped.
    """

    def __init__(self, tokenizer: Any, *, keep: Collection[str] = ()) -> None:
        """``tokenizer`` is a fast tokenizer of transformers. Special tokens are skipped, except those in ``keep``."""
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        # The backend could skip only all special tokens or none.
        added = self._backend.get_added_tokens_decoder().items()
        self._skipped = frozenset(index for index, token in added if token.special and token.content not in keep)
        self._stream = DecodeStream(skip_special_tokens=False)
        self._held: list[int] = []

    def feed(self, token_id: int) -> str:
        """Add ``token_id`` and return the text that is now complete, which can be empty."""
        if token_id in self._skipped:
            return ""
        text = self._stream.step(self._backend, token_id)
        if text is None:
            self._held.append(token_id)
            return ""
        self._held.clear()
        return text.replace(REPLACEMENT, "")

    def flush(self) -> str:
        """Return the text of the tokens that were held back. Call this at the end of the answer."""
        text: str = self._backend.decode(self._held, skip_special_tokens=False)
        self._held.clear()
        return text.replace(REPLACEMENT, "")


def token_text(tokenizer: Any, token_id: int) -> str:
    """Return the text of one token. U+FFFD replaces a part of a character."""
    text: str = tokenizer.backend_tokenizer.decode([token_id], skip_special_tokens=False)
    return text


def scored_token(tokenizer: Any, token: Token) -> ScoredToken:
    """Return ``token`` with its text and the texts of its alternatives."""
    others = [TokenAlternative(index, token_text(tokenizer, index), *values) for index, *values in token.alternatives]
    text = token_text(tokenizer, token.id)
    return ScoredToken(token.id, text, token.logprob, token.sampled, token.entropy, tuple(others))
