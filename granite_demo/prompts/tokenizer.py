"""Texts to token ids, with or without the control tokens that they spell. Knows neither requests nor templates."""

from collections.abc import Collection, Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from granite_demo.prompts.taint import Marker
from granite_demo.types.logprobs import ScoredToken, Token, TokenAlternative


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


REPLACEMENT = "\ufffd"


class IncrementalDecoder:
    """Decodes the ids of one answer. The joined deltas equal the decoded whole, less U+FFFD.

    Byte-level tokens cut characters: ``DecodeStream`` holds back what ends inside one. Bytes that never become a
    character are dropped, for U+FFFD tells a reader nothing.
    """

    def __init__(self, tokenizer: Any, *, skip_special_tokens: bool = True, keep: Collection[str] = ()) -> None:
        """``tokenizer`` is transformers' fast tokenizer; ``keep`` are special tokens that are not skipped."""
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._skipped: frozenset[int] = frozenset()
        if skip_special_tokens and keep:
            # The backend skips all or none, so those that are not kept never get to it.
            added = self._backend.get_added_tokens_decoder().items()
            self._skipped = frozenset(index for index, token in added if token.special and token.content not in keep)
            skip_special_tokens = False
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._skip_special_tokens = skip_special_tokens
        self._held: list[int] = []

    def feed(self, token_id: int) -> str:
        """The text that became certain with ``token_id``: often a word, at times nothing."""
        if token_id in self._skipped:
            return ""
        text = self._stream.step(self._backend, token_id)
        if text is None:
            self._held.append(token_id)
            return ""
        self._held.clear()
        return text.replace(REPLACEMENT, "")

    def flush(self) -> str:
        """What of the held-back ids is text after all, at the end of the answer."""
        text: str = self._backend.decode(self._held, skip_special_tokens=self._skip_special_tokens)
        self._held.clear()
        return text.replace(REPLACEMENT, "")


def token_text(tokenizer: Any, token_id: int) -> str:
    """The text of one token by itself; U+FFFD stands for a part of a character."""
    text: str = tokenizer.backend_tokenizer.decode([token_id], skip_special_tokens=False)
    return text


def scored_token(tokenizer: Any, token: Token) -> ScoredToken:
    """``token`` with texts."""
    others = [TokenAlternative(index, token_text(tokenizer, index), *values) for index, *values in token.alternatives]
    text = token_text(tokenizer, token.id)
    return ScoredToken(token.id, text, token.logprob, token.sampled, token.entropy, tuple(others))
