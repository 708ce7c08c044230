"""Converts text to token ids, with or without the control tokens that it spells, and token ids to text."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import tokenizers
from tokenizers.decoders import DecodeStream

from granite_demo.prompts.taint import TaintMarker
from granite_demo.types.logprobs import ScoredToken, Token, TokenAlternative


class Tokenizer(Protocol):
    """What this project uses of a fast tokenizer of transformers. ``GgufTokenizer`` has the same."""

    chat_template: Any
    """A template, a dictionary of templates by name, or None."""

    @property
    def backend_tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer of the package ``tokenizers`` that does the work."""

    @property
    def added_tokens_encoder(self) -> Mapping[str, int]:
        """The ids of the added tokens, by their texts."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends an answer."""

    @property
    def all_special_tokens(self) -> list[str]:
        """The texts of the special tokens."""

    @property
    def special_tokens_map(self) -> Mapping[str, Any]:
        """The texts of the special tokens by their names, such as ``bos_token``. Chat templates read them."""

    def __call__(self, text: Any, add_special_tokens: bool = ..., return_offsets_mapping: bool = ...) -> Any:
        """Encode one text or a list of texts: ``input_ids``, and ``offset_mapping`` on request."""

    def __len__(self) -> int:
        """Return the number of tokens."""

    def get_added_vocab(self) -> dict[str, int]:
        """Return ``added_tokens_encoder``."""


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of ``text`` without added tokens at the ends. The text of a control token becomes one."""
    if not text:
        return []
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def encode_each(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Encode each text in one call, because a request can have thousands of pieces."""
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []
    return ids


def control_tokens(tokenizer: Tokenizer) -> list[str]:
    """Return the texts of the control tokens, which include the markers of tool calls and reasoning."""
    return [text for text in tokenizer.added_tokens_encoder if len(text) > 1 and text.strip()]


def split_control_tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    """Split ``text`` into pieces that spell no control token if they are encoded separately."""
    return [piece for piece in TaintMarker(control_tokens(tokenizer)).cut(text) if piece]


REPLACEMENT = "\ufffd"


class Detokenizer:
    """Decodes the token ids of one answer incrementally. The joined results equal the decoded answer without U+FFFD.

    A byte-level token can end inside a character. ``DecodeStream`` holds back such tokens until the character is
    complete. Bytes that never become a character are dropped.
    """

    def __init__(self, tokenizer: Tokenizer, *, keep: Collection[str] = ()) -> None:
        """Special tokens are skipped, except those in ``keep``."""
        self._backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
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


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """Return the text of one token. U+FFFD replaces a part of a character."""
    text: str = tokenizer.backend_tokenizer.decode([token_id], skip_special_tokens=False)
    return text


def scored_token(tokenizer: Tokenizer, token: Token) -> ScoredToken:
    """Return ``token`` with its text and the texts of its alternatives."""
    others = [
        TokenAlternative(index, token_text(tokenizer, index), logprob, sampled)
        for index, logprob, sampled in token.alternatives
    ]
    text = token_text(tokenizer, token.id)
    return ScoredToken(token.id, text, token.logprob, token.sampled, token.entropy, tuple(others))
