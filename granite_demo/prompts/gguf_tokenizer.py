"""Makes a tokenizer from the vocabulary in a GGUF file, with the package ``tokenizers``. Does not import transformers.

``tokenizer.ggml.pre`` is llama.cpp's name for the split of a text before BPE. The split itself is in the tokenizer.json
of the models that use it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from granite_demo.errors import CorruptModelError
from granite_demo.models.gguf_header import GgufHeader, Vocabulary

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UP_TO_THREE_DIGITS = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_SINGLE_DIGITS = rf"{_WORDS}|\p{{N}}|{_REST}"
_GPT_2, _DIGITS_FIRST = "gpt-2", "digits first"
"""Splits that ``tokenizers`` has built in: the split of GPT-2, and the same after a split into single digits."""

SPLITS: dict[str, str] = {
    "gpt-2": _GPT_2,
    "mpt": _GPT_2,
    "olmo": _GPT_2,
    "granite-docling": _GPT_2,
    "refact": _DIGITS_FIRST,  # Granite 3
    "starcoder": _DIGITS_FIRST,
    "smollm": _DIGITS_FIRST,
    "command-r": _DIGITS_FIRST,
    "codeshell": _DIGITS_FIRST,
    "dbrx": _UP_TO_THREE_DIGITS,  # Granite 4
    "smaug-bpe": _UP_TO_THREE_DIGITS,
    "llama3": _UP_TO_THREE_DIGITS,
    "llama-v3": _UP_TO_THREE_DIGITS,
    "llama-bpe": _UP_TO_THREE_DIGITS,
    "falcon3": _UP_TO_THREE_DIGITS,
    "qwen2": _SINGLE_DIGITS,
    "deepseek-r1-qwen": _SINGLE_DIGITS,
    "megrez": _SINGLE_DIGITS,
    "stablelm2": _SINGLE_DIGITS,
}
"""The split before BPE by llama.cpp's name: a pattern, or one of the two built-in splits."""
WHOLE_WORDS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3"})
"""Splits whose words become one token if they are in the vocabulary, without merges."""
UNKNOWN, CONTROL_TOKEN, USER_DEFINED, UNUSED = 2, 3, 4, 5
"""Types of tokens in GGUF (``TokenType``)."""
PROBE_TEXTS = (
    "Hello, it's 12345  blanks\n\n\tdef f(x_1): return x**2 != 3.14 # Ça va? 你好 🙂",
    "I'M HERE, we'LL see; don't 'quote' 007 1.000.000,5 ½ ② ٣٤٥ x²",
    "naïve café Zürich Ünïcödé A\u030angstro\u0308m שלום مرحبا नमस्ते ไทย 한국어 日本語テスト。「はい」",
    "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🙂🙂 \ufe0f \u200b \u00a0 \u3000x \ufeff",
    "    four\n        eight\n\n\n  two \r\n\r\n end   \t \n",
    'for (int i = 0; i < n; ++i) { a[i] += "%d\\n"; } /* ... */ #include <stdio.h>\n<div class="a">&amp;</div>',
    "https://example.org/a_b-c?d=1&e=%20#f  snake_case camelCase SCREAMING_CASE !!! ??? ... --- === ~~~ @@@ ^^^",
)
"""Texts that different tokenizers encode differently."""
PUT_BESIDE = "Put the tokenizer.json of the model beside the file."


@dataclass(frozen=True, slots=True)
class Encoding:
    """The tokens of one text or of several texts."""

    input_ids: Any
    """``list[int]``, or a list of them."""
    offset_mapping: Any = None
    """The start and end of each token in the text, in characters; None if not requested."""

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class GgufTokenizer:
    """The part of transformers' ``PreTrainedTokenizerFast`` that this project uses: see ``Tokenizer``."""

    def __init__(self, backend: Tokenizer, header: GgufHeader) -> None:
        """``backend`` encodes with the vocabulary of ``header``. Use ``make_tokenizer``."""
        vocabulary = header.vocabulary
        self.backend_tokenizer = backend
        self.chat_template = _templates(header)
        self.added_tokens_encoder = {
            token.content: index for index, token in sorted(backend.get_added_tokens_decoder().items())
        }
        self.eos_token_id = vocabulary.eos_id
        self._size = len(vocabulary.tokens)
        named = {
            "bos_token": vocabulary.bos_id,
            "eos_token": vocabulary.eos_id,
            "unk_token": vocabulary.unknown_id,
            "pad_token": vocabulary.pad_id,
        }
        self.special_tokens_map = {name: vocabulary.tokens[index] for name, index in named.items() if index is not None}
        special = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
        self.all_special_tokens = list(dict.fromkeys([*self.special_tokens_map.values(), *special]))

    def __len__(self) -> int:
        return self._size

    def __call__(
        self, text: str | Sequence[str], add_special_tokens: bool = False, return_offsets_mapping: bool = False
    ) -> Encoding:
        """Encode one text or several texts. No tokens are added at the ends."""
        if isinstance(text, str):
            encoded = self.backend_tokenizer.encode(text, add_special_tokens=False)
            return Encoding(encoded.ids, encoded.offsets if return_offsets_mapping else None)
        batch = self.backend_tokenizer.encode_batch(list(text), add_special_tokens=False)
        offsets = [encoded.offsets for encoded in batch] if return_offsets_mapping else None
        return Encoding([encoded.ids for encoded in batch], offsets)

    def get_added_vocab(self) -> dict[str, int]:
        """Return the ids of the added tokens, by their texts."""
        return dict(self.added_tokens_encoder)


def _templates(header: GgufHeader) -> str | dict[str, str] | None:
    named = dict(header.named_templates)
    if not named:
        return header.chat_template
    return {**({"default": header.chat_template} if header.chat_template else {}), **named}


def make_tokenizer(header: GgufHeader, beside: Path | None = None) -> GgufTokenizer:
    """Make the tokenizer of the file with this header.

    ``beside`` is the folder of the file or of its checkpoint. A tokenizer.json in it must be of the same model. It is
    used if the split in the GGUF file is not supported. Raises CorruptModelError.
    """
    vocabulary = header.vocabulary
    name = header.files[0].name
    path = beside / "tokenizer.json" if beside else None
    other = _read(path, header) if path and path.is_file() else None
    if vocabulary.model == "gpt2" and vocabulary.pre in SPLITS:
        make = _byte_level
    elif vocabulary.model == "llama":
        make = _sentence_piece
    elif other:
        return GgufTokenizer(other, header)
    else:
        way = vocabulary.pre or vocabulary.model
        raise CorruptModelError(f"The tokenizer type {way!r:.80} of {name} is not supported. {PUT_BESIDE}")
    try:
        backend = make(vocabulary)
    except Exception as error:  # tokenizers raises Exception itself
        raise CorruptModelError(f"The vocabulary in {name} cannot be read: {error}. {PUT_BESIDE}") from error
    tokenizer = GgufTokenizer(backend, header)
    if other:
        _compare(
            name, tokenizer, lambda text: other.encode(text, add_special_tokens=False).ids, "tokenizer.json beside it"
        )
    return tokenizer


def check_with_llama(name: str, tokenizer: GgufTokenizer, encode_by_llama: Callable[[str], Sequence[int]]) -> None:
    """Compare ``tokenizer`` with llama.cpp's on texts with accents, emoji, code, digits, spaces and control tokens.

    ``encode_by_llama`` must encode control tokens as such and add no tokens. Raises CorruptModelError for a difference.
    """
    _compare(name, tokenizer, encode_by_llama, "llama.cpp")


def _compare(name: str, tokenizer: GgufTokenizer, encode: Callable[[str], Sequence[int]], who: str) -> None:
    controls = [text for text in tokenizer.added_tokens_encoder if text.strip()]
    for text in (*PROBE_TEXTS, "a".join(controls), " ".join(controls[:64])):
        ours, theirs = tokenizer(text).input_ids, list(encode(text))
        if ours == theirs:
            continue
        same = (left == right for left, right in zip(ours, theirs, strict=False))
        at = next((place for place, equal in enumerate(same) if not equal), min(len(ours), len(theirs)))
        raise CorruptModelError(
            f"{name} and {who} encode {text[:40]!r} differently from token {at}: {ours[at:][:5]} and "
            f"{theirs[at:][:5]}. Use the tokenizer.json of the same model, or remove it."
        )


def _read(path: Path, header: GgufHeader) -> Tokenizer:
    try:
        other = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise CorruptModelError(f"{path.name} beside the GGUF file cannot be read: {error}. Remove it.") from error
    vocabulary = header.vocabulary
    # Some GGUF files are padded to a multiple of 8 tokens.
    least = len(vocabulary.tokens) - vocabulary.types.count(UNUSED)
    if not least <= other.get_vocab_size() <= len(vocabulary.tokens):
        raise CorruptModelError(
            f"{path.name} beside {header.files[0].name} is of another model: it has {other.get_vocab_size():,} tokens, "
            f"the GGUF file has {len(vocabulary.tokens):,}. Remove it."
        )
    other.no_padding()
    other.no_truncation()
    return other


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    merges = [tuple(merge.split(" ", 1)) for merge in vocabulary.merges]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={text: index for index, text in enumerate(vocabulary.tokens)},
            merges=merges,  # type: ignore[arg-type]
            ignore_merges=vocabulary.pre in WHOLE_WORDS,
        )
    )
    split = SPLITS[vocabulary.pre]
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    with_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split is _GPT_2:
        tokenizer.pre_tokenizer = with_words
    elif split is _DIGITS_FIRST:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), with_words])
    else:
        words = pre_tokenizers.Split(Regex(split), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    _add(tokenizer, vocabulary)
    return tokenizer


def _sentence_piece(vocabulary: Vocabulary) -> Tokenizer:
    """SentencePiece as BPE: a pair with a better score of its token is merged first."""
    ids = {text: index for index, text in enumerate(vocabulary.tokens)}
    parts = [
        (-vocabulary.scores[index], cut, text[:cut], text[cut:])
        for text, index in ids.items()
        for cut in range(1, len(text))
        if vocabulary.types[index] == 1 and text[:cut] in ids and text[cut:] in ids
    ]
    merges = [(left, right) for _, _, left, right in sorted(parts, key=lambda part: part[:2])]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, fuse_unk=True, byte_fallback=True))
    prefix = [normalizers.Prepend("▁")] if vocabulary.add_space_prefix is not False else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    spaces: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*spaces, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    _add(tokenizer, vocabulary)
    return tokenizer


def _add(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Add the tokens that are matched before the split. llama.cpp always includes tokens that end an answer."""
    ends = vocabulary.end_ids
    added = [
        AddedToken(text, special=kind != USER_DEFINED, normalized=False)
        for index, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (UNKNOWN, CONTROL_TOKEN, USER_DEFINED) or index in ends
    ]
    tokenizer.add_tokens(added)
