"""Reads and checks the header of a GGUF file before llama.cpp opens the file. Does not import torch.

llama.cpp aborts the process for some headers and gives one error for all others. This module finds each cause. The
format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. No length in the file causes an allocation: each
value is read from the mapped file, which has an end.
"""

import math
import mmap
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, cast

from granite_demo.errors import CorruptModelError, ModelError

Value = bool | int | float | str | tuple[bool, ...] | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]

TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""Name, elements per block and bytes per block, by the number in the file (``ggml_type``)."""

FILE_TYPES: dict[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
}
"""The quantization of a file, by the number in ``general.file_type`` (``llama_ftype``)."""

NO_GENERATORS = frozenset(
    {
        "bert",
        "modern-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "eurobert",
        "gemma-embedding",
        "llama-embed",
        "t5encoder",
        "clip",
        "wavtokenizer-dec",
    }
)
"""Architectures that llama.cpp can load, but that do not generate text."""

GRANITES = frozenset({"granite", "granitemoe", "granitehybrid"})
"""Architectures for which llama.cpp aborts if the rotary dimensions or the Mamba width differ from the usual ones."""

END_TEXTS = frozenset(
    [
        "<|end_of_text|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|calls|>",
        "<|flush|>",
        "<|endoftext|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<turn|>",
        "<|tool_response>",
        "</s>",
        "<eos>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "[e~[",
        "<｜end▁of▁sentence｜>",
        "<|fim_pad|>",
        "<fim-pad>",
        "<fim_pad>",
        "<PAD>",
        "[PAD]",
        "<|fim_repo|>",
        "<|repo_name|>",
        "<fim-repo>",
        "<REPO>",
        "<reponame>",
        "<|file_sep|>",
    ]
)
"""Tokens that always end an answer in llama.cpp."""

MAX_LAYERS = MAX_EXPERTS = 512
"""llama.cpp aborts above these numbers (``LLAMA_MAX_LAYERS``, ``LLAMA_MAX_EXPERTS``)."""
MAX_KEYS = MAX_TENSORS = 65_536
MAX_ITEMS = 4_194_304
"""The maximum length of a list. The largest vocabularies have about 250,000 tokens and 500,000 merges."""
MAX_GGUF_HEADER = 512 * 2**20
MAX_SIZE = 2**31 - 1
"""llama.cpp stores sizes in int32 or uint32."""
ALIGNMENTS = frozenset(2**power for power in range(3, 13))
AGAIN = "Download the file again."
OTHER_KINDS = "Choose another file."

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRUCTS = {kind: struct.Struct(f"<{letter}") for kind, letter in _SCALARS.items()}
_TEXT, _LIST = 8, 9
_U32, _U64, _INFO = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQ")
_SHARD = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor in a file. ``dims`` starts with the contiguous dimension, ``offset`` is from the start of the file."""

    name: str
    dims: tuple[int, ...]
    kind: str
    offset: int
    size: int
    file: int = 0
    """The index of its file among the files of the model."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The vocabulary in a file: ``tokens`` and their ``types`` (``TokenType`` of GGUF) by id."""

    model: str
    """``gpt2`` is byte-level BPE, ``llama`` is SentencePiece."""
    pre: str
    """llama.cpp's name for the split of a text before BPE."""
    tokens: tuple[str, ...] = field(repr=False)
    types: tuple[int, ...] = field(repr=False)
    merges: tuple[str, ...] = field(repr=False)
    scores: tuple[float, ...] = field(repr=False)
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    eom_id: int | None
    unknown_id: int | None
    pad_id: int | None
    add_bos: bool | None
    add_eos: bool | None
    add_space_prefix: bool | None

    @property
    def pieces(self) -> list[bytes]:
        """The bytes of each token, in the order of their ids. A control token has the bytes of its text."""
        if self.model == "gpt2":
            letters = _byte_letters()
            return [bytes(letters.get(letter, 0x3F) for letter in text) for text in self.tokens]
        return [_sentencepiece_bytes(text) for text in self.tokens]

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end an answer in llama.cpp: those that the file names, and some with known texts."""
        named = (index for index in (self.eos_id, self.eot_id, self.eom_id) if index is not None)
        return frozenset({*named, *(index for index, text in enumerate(self.tokens) if text in END_TEXTS)})


@dataclass(frozen=True, slots=True)
class StateSpace:
    """The sizes of the Mamba layers of a hybrid."""

    conv_kernel: int
    inner_size: int
    state_size: int
    groups: int
    time_step_rank: int
    """For Mamba-2, the number of heads."""

    @property
    def channels(self) -> int:
        """Channels of the convolution: the input with B and C."""
        return self.inner_size + 2 * self.groups * self.state_size

    @property
    def conv_bytes(self) -> int:
        """Bytes of the convolution state of one layer for one conversation, in float32."""
        return 4 * (self.conv_kernel - 1) * self.channels

    @property
    def state_bytes(self) -> int:
        """Bytes of the SSM state of one layer for one conversation, in float32."""
        return 4 * self.state_size * self.inner_size


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """The facts about the model in a file, all checked. Sizes are numbers of elements unless the name says bytes."""

    files: tuple[Path, ...]
    file_size: int
    """Bytes of all files."""
    architecture: str
    name: str
    size_label: str
    quantization: str
    context_length: int
    layers: int
    width: int
    """Of the embedding (hidden size)."""
    feed_forward: tuple[int, ...]
    """For each layer."""
    heads: tuple[int, ...]
    """Query heads of each layer."""
    kv_heads: tuple[int, ...]
    """Heads of keys and values of each layer; 0 where a layer has no attention."""
    key_length: int
    value_length: int
    attention_layers: tuple[int, ...]
    recurrent_layers: tuple[int, ...]
    state_space: StateSpace | None
    experts: int
    experts_used: int
    rope_dimensions: int
    rope_base: float | None
    norm_epsilon: float | None
    vocabulary: Vocabulary
    chat_template: str | None
    named_templates: tuple[tuple[str, str], ...]
    tensors: tuple[GgufTensor, ...] = field(repr=False)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(tensor.size for tensor in self.tensors)


def _byte_letters() -> dict[str, int]:
    """Return the byte of each letter in a byte-level vocabulary (GPT-2's ``bytes_to_unicode``)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


def _sentencepiece_bytes(text: str) -> bytes:
    if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", text):
        return bytes([int(match[1], 16)])
    return text.replace("\u2581", " ").encode()


def read_header(path: Path) -> GgufHeader:
    """Read the header of ``path`` and check everything that does not need the weights.

    ``path`` can be any of the files ``NAME-00001-of-0000N.gguf`` of a model. Raises CorruptModelError with the cause
    and the remedy, and ModelError for a valid file without a model that generates text.
    """
    paths = shards_of(path)
    files = [_read_file(each, number) for number, each in enumerate(paths)]
    first = files[0]
    _check_shards(files)
    keys = _Keys(first.path, first.keys)
    tensors = tuple(tensor for file in files for tensor in file.tensors)
    if double := [name for name, count in Counter(tensor.name for tensor in tensors).items() if count > 1]:
        _refuse(path, f"has the tensor {double[0]!r:.80} twice")
    return _header(keys, tuple(paths), sum(file.size for file in files), tensors)


def shards_of(path: Path) -> list[Path]:
    """Return all files of the model that ``path`` belongs to, in order. Raises CorruptModelError if one is missing."""
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    paths = [path.with_name(f"{match['name']}-{number:05d}-of-{match['count']}.gguf") for number in range(1, count + 1)]
    missing = [shard.name for shard in paths if not shard.is_file()]
    if missing or not paths:
        names = ", ".join(missing[:3]) + (" and more" if len(missing) > 3 else "")
        _refuse(
            path, f"is one of {count} files of a model. Missing: {names or 'all'}", "Download all files to one folder."
        )
    return paths


def _refuse(path: Path, what: str, to_do: str = AGAIN) -> NoReturn:
    raise CorruptModelError(f"{path.name} {what}. {to_do}")


class _CutError(Exception):
    """The file ends inside a value."""


class _AbsurdError(Exception):
    """A value that no valid file has. The message continues a sentence that starts with the name of the file."""


class _Reader:
    """Reads values of GGUF from a mapped file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.at = 0
        self._data = data
        self._end = min(len(data), MAX_GGUF_HEADER)

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        start = self._skip(form.size)
        return form.unpack_from(self._data, start)

    def _skip(self, size: int) -> int:
        start = self.at
        if size > self._end - start:
            if self._end < len(self._data):
                raise _AbsurdError(f"has a header of more than {MAX_GGUF_HEADER >> 20} MiB")
            raise _CutError
        self.at = start + size
        return start

    def text(self) -> str:
        [size] = self.unpack(_U64)
        start = self._skip(size)
        return self._data[start : start + size].decode(errors="replace")

    def value(self) -> Value:
        [kind] = self.unpack(_U32)
        if kind == _TEXT:
            return self.text()
        if kind in _STRUCTS:
            return self.unpack(_STRUCTS[kind])[0]
        if kind != _LIST:
            raise _AbsurdError(f"has a value of the unknown type {kind}")
        [kind], [count] = self.unpack(_U32), self.unpack(_U64)
        if count > MAX_ITEMS:
            raise _AbsurdError(f"has a list of {count:,} values")
        if kind == _TEXT:
            return self._texts(count)
        if kind not in _SCALARS:
            raise _AbsurdError(f"has a list of the unsupported type {kind}")
        return self.unpack(struct.Struct(f"<{count}{_SCALARS[kind]}"))

    def _texts(self, count: int) -> tuple[str, ...]:
        # A vocabulary and its merges can have 250,000 texts, so the loop calls C functions only.
        data, at, end, length = self._data, self.at, self._end, _U64.unpack_from
        texts = []
        try:
            for _ in range(count):
                start = at + 8
                at = start + length(data, at)[0]
                if at > end:
                    raise _CutError
                texts.append(data[start:at].decode())
        except struct.error:
            raise _CutError from None
        except UnicodeDecodeError:
            raise _AbsurdError("has a list of texts that are not UTF-8") from None
        self.at = at
        return tuple(texts)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    keys: dict[str, Value]
    tensors: tuple[GgufTensor, ...]
    size: int


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    try:
        with path.open("rb") as file:
            if path.stat().st_size < 24:
                _refuse(path, f"has only {path.stat().st_size} bytes, which is less than a GGUF header")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data
    except OSError as error:
        raise CorruptModelError(f"{path.name} cannot be read: {error.strerror or error}. {OTHER_KINDS}") from error


def _read_file(path: Path, number: int) -> _File:
    with _mapped(path) as data:
        _check_kind(path, data)
        reader = _Reader(data)
        reader.at = 8
        try:
            [count], [keys] = reader.unpack(_U64), reader.unpack(_U64)
            if count > MAX_TENSORS or keys > MAX_KEYS:
                raise _AbsurdError(f"states {count:,} tensors and {keys:,} keys")
            metadata = _read_keys(reader, keys)
            infos = [_read_info(reader) for _ in range(count)]
            tensors = _located(infos, metadata, reader.at, number)
        except _CutError:
            _refuse(path, f"is truncated: it ends in its header, at {len(data):,} bytes")
        except _AbsurdError as error:
            _refuse(path, f"{error}: the file is damaged")
        end = max((tensor.offset + tensor.size for tensor in tensors), default=0)
        if end > len(data):
            _refuse(path, f"is truncated: it has {len(data):,} of {end:,} bytes")
        return _File(path, metadata, tensors, len(data))


def _check_kind(path: Path, data: mmap.mmap) -> None:
    if data[:4] != b"GGUF":
        _refuse(path, f"is not a GGUF file: it begins with {data[:4]!r}", OTHER_KINDS)
    [version] = _U32.unpack_from(data, 4)
    if version and not version & 0xFFFF:
        _refuse(path, "is a GGUF file for big-endian processors", "Choose the little-endian file.")
    if version not in (2, 3):
        _refuse(path, f"has GGUF version {version}; the supported versions are 2 and 3", "Choose a file of version 3.")


def _read_keys(reader: _Reader, count: int) -> dict[str, Value]:
    keys: dict[str, Value] = {}
    for _ in range(count):
        key = reader.text()
        if key in keys:
            raise _AbsurdError(f"has the key {key!r:.80} twice")
        keys[key] = reader.value()
    return keys


def _read_info(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.text()
    [rank] = reader.unpack(_U32)
    if rank > 4:
        raise _AbsurdError(f"has a tensor of {rank:,} dimensions")
    dims = reader.unpack(struct.Struct(f"<{rank}Q"))
    kind, offset = reader.unpack(_INFO)
    return name, dims, kind, offset


def _located(
    infos: list[tuple[str, tuple[int, ...], int, int]], keys: Mapping[str, Value], header: int, file: int
) -> tuple[GgufTensor, ...]:
    """Return the tensors with their sizes and places. They must be contiguous, each at a multiple of the alignment."""
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment not in ALIGNMENTS:
        raise _AbsurdError(f"has the alignment {alignment!r:.80}")
    start, tensors = round_up(header, alignment), []
    at = start
    for name, dims, kind, offset in infos:
        if kind not in TENSOR_TYPES:
            raise _AbsurdError(f"has a tensor of the unknown type {kind}")
        word, block, width = TENSOR_TYPES[kind]
        elements = math.prod(dims)
        if not elements or max(dims, default=1) > MAX_SIZE or elements >= 2**62 or (dims[0] if dims else 1) % block:
            raise _AbsurdError(f"has the tensor {name!r:.80} with the shape {' x '.join(map(str, dims))} in {word}")
        if start + offset != at:
            raise _AbsurdError(f"has the tensor {name!r:.80} at {offset:,} instead of {at - start:,}")
        tensors.append(GgufTensor(name, dims, word, at, elements // block * width, file))
        at = round_up(at + tensors[-1].size, alignment)
    return tuple(tensors)


def round_up(value: int, multiple: int) -> int:
    """Round ``value`` up to a multiple of ``multiple``."""
    return -(-value // multiple) * multiple


def _check_shards(files: list[_File]) -> None:
    first = files[0]
    total = first.keys.get("split.count", 0 if len(files) == 1 else None)
    if total in (0, 1) and len(files) == 1:
        return
    if len(files) == 1:
        _refuse(
            first.path,
            f"is one of {total} files of a model, but its name does not show it",
            "Restore its original name.",
        )
    for number, file in enumerate(files):
        if (file.keys.get("split.no"), file.keys.get("split.count")) != (number, len(files)):
            _refuse(file.path, f"is not file {number + 1} of {len(files)}, as its name states")
    stated, there = first.keys.get("split.tensors.count"), sum(len(file.tensors) for file in files)
    if stated != there:
        _refuse(first.path, f"and the other files of the model contain {there} tensors instead of {stated}")


class _Keys:
    """The metadata of a file. Each method checks the type and the range of a value."""

    def __init__(self, path: Path, values: Mapping[str, Value]) -> None:
        self.path = path
        self._values = values
        self.architecture = self.text("general.architecture")
        if not self.architecture:
            _refuse(path, "has no general.architecture")

    def refuse(self, key: str, value: object) -> NoReturn:
        """Raise CorruptModelError for an invalid value."""
        _refuse(self.path, f"has the invalid value {value!r:.80} of {key}")

    def _full(self, key: str) -> str:
        return key.replace("{}", self.architecture, 1)

    def get(self, key: str) -> Value | None:
        """Return the value of ``key``. ``{}`` in the key is the architecture."""
        return self._values.get(self._full(key))

    def text(self, key: str, default: str = "") -> str:
        """Return a text."""
        value = self.get(key) if key != "general.architecture" else self._values.get(key)
        return default if value is None else value if isinstance(value, str) else self.refuse(key, value)

    def whole(self, key: str, default: int | None = None, least: int = 1, most: int = MAX_SIZE) -> int:
        """Return an integer in a range. Without a default, the key is required."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(self._full(key), value)
        return value

    def maybe(self, key: str, most: int) -> int | None:
        """Return a token id, or None if the key is missing or the id is above ``most``: llama.cpp ignores such ids."""
        value = self.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            self.refuse(self._full(key), value)
        return value if value is not None and 0 <= value <= most else None

    def flag(self, key: str) -> bool | None:
        """Return a boolean, or None if the key is missing."""
        value = self.get(key)
        return value if value is None or isinstance(value, bool) else self.refuse(self._full(key), value)

    def number(self, key: str) -> float | None:
        """Return a number, or None if the key is missing."""
        value = self.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, float | int)):
            self.refuse(self._full(key), value)
        return value

    def each(self, key: str, layers: int, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Return an integer for each layer. The file has one for all layers, or a list."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, tuple):
            return (self.whole(key, least=0),) * layers
        numbers = tuple(item for item in value if isinstance(item, int) and 0 <= item <= MAX_SIZE)
        if len(numbers) != layers or len(value) != layers:
            self.refuse(self._full(key), value)
        return numbers

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts, which is empty if the key is missing."""
        value = self.get(key)
        if value is None or value == ():
            return ()
        if not isinstance(value, tuple) or not isinstance(value[0], str):
            self.refuse(key, value)
        return value

    def numbers(self, key: str, count: int, default: float) -> tuple[float, ...]:
        """Return a list of ``count`` numbers, all ``default`` if the key is missing."""
        value = self.get(key)
        if value is None:
            return (default,) * count
        if not isinstance(value, tuple) or len(value) < count or isinstance(value[0], str):
            self.refuse(key, value)
        return cast(tuple[float, ...], value[:count])

    def check_finite(self) -> None:
        """Refuse numbers that are not finite: llama.cpp aborts for some and gives wrong results for the others."""
        for key, value in self._values.items():
            if key.startswith(f"{self.architecture}.") and isinstance(value, float) and not math.isfinite(value):
                self.refuse(key, value)


def _header(keys: _Keys, paths: tuple[Path, ...], size: int, tensors: tuple[GgufTensor, ...]) -> GgufHeader:
    _check_writes_text(keys)
    vocabulary = _read_vocabulary(keys)
    keys.check_finite()
    layers = keys.whole("{}.block_count", most=MAX_LAYERS)
    blocks = _check_layers(keys.path, tensors, layers)
    width = keys.whole("{}.embedding_length")
    _check_embedding(keys.path, tensors, width, len(vocabulary.tokens))
    heads = keys.each("{}.attention.head_count", layers, (0,) * layers)
    head = width // max(heads) if max(heads) else 0
    key_length = keys.whole("{}.attention.key_length", head, least=0)
    value_length = keys.whole("{}.attention.value_length", head, least=0)
    rope = keys.whole("{}.rope.dimension_count", key_length, least=0)
    if keys.architecture in GRANITES and not key_length == value_length == rope:
        what = f"has rotary embeddings for {rope} of the {key_length} dimensions of a head"
        _refuse(keys.path, f"{what}, which llama.cpp does not support")
    keys.whole("{}.nextn_predict_layers", 0, least=0, most=layers - 1)
    experts = keys.whole("{}.expert_count", 0, least=0, most=MAX_EXPERTS)
    epsilon = keys.number("{}.attention.layer_norm_rms_epsilon")
    epsilon = keys.number("{}.attention.layer_norm_epsilon") if epsilon is None else epsilon
    if epsilon is not None and epsilon < 0:
        keys.refuse("the norm epsilon", epsilon)
    name = keys.text("general.name")
    header = GgufHeader(
        files=paths,
        file_size=size,
        architecture=keys.architecture,
        name=name or paths[0].stem,
        size_label=keys.text("general.size_label"),
        quantization=_quantization(keys, tensors),
        context_length=keys.whole("{}.context_length"),
        layers=layers,
        width=width,
        feed_forward=keys.each("{}.feed_forward_length", layers, (0,) * layers),
        heads=heads,
        kv_heads=keys.each("{}.attention.head_count_kv", layers, heads),
        key_length=key_length,
        value_length=value_length,
        attention_layers=_layers_with(blocks, "attn_k", "attn_qkv", "attn_kv"),
        recurrent_layers=_layers_with(blocks, "ssm_conv1d", "shortconv", "time_mix_w1"),
        state_space=_read_state_space(keys, width),
        experts=experts,
        experts_used=keys.whole("{}.expert_used_count", 0, least=1 if experts else 0, most=experts),
        rope_dimensions=rope,
        rope_base=keys.number("{}.rope.freq_base"),
        norm_epsilon=epsilon,
        vocabulary=vocabulary,
        chat_template=keys.text("tokenizer.chat_template") or None,
        named_templates=tuple(
            (name, keys.text(f"tokenizer.chat_template.{name}")) for name in keys.texts("tokenizer.chat_templates")
        ),
        tensors=tensors,
    )
    _check_shapes(keys.path, header)
    return header


def _check_writes_text(keys: _Keys) -> None:
    kind = keys.text("general.type", "model")
    causal = keys.flag("{}.attention.causal")
    if keys.architecture in NO_GENERATORS or kind not in ("model", "vocab") or causal is False:
        other = {"mmproj": "the vision part of a model", "adapter": "an adapter", "imatrix": "an importance matrix"}
        what = other.get(kind, f"a model of the architecture {keys.architecture}")
        raise ModelError(f"{keys.path.name} has {what}, which generates no text. Choose the file of a language model.")


def _read_state_space(keys: _Keys, width: int) -> StateSpace | None:
    if keys.get("{}.ssm.inner_size") is None:
        return None
    exact = 2 * width if keys.architecture in GRANITES else None
    inner = keys.whole("{}.ssm.inner_size", least=exact or 1, most=exact or MAX_SIZE)
    groups = keys.whole("{}.ssm.group_count", 1, least=0)
    return StateSpace(
        conv_kernel=keys.whole("{}.ssm.conv_kernel"),
        inner_size=inner,
        state_size=keys.whole("{}.ssm.state_size"),
        groups=groups,
        time_step_rank=keys.whole("{}.ssm.time_step_rank"),
    )


def _read_vocabulary(keys: _Keys) -> Vocabulary:
    model = keys.text("tokenizer.ggml.model")
    tokens = tuple(text or f"[EMPTY_{index}]" for index, text in enumerate(keys.texts("tokenizer.ggml.tokens")))
    if not tokens or model in ("", "no_vocab", "none"):
        _refuse(keys.path, "has no vocabulary", "Choose a file that has one.")
    merges = keys.texts("tokenizer.ggml.merges")
    if model == "gpt2" and not merges:
        _refuse(keys.path, "has no merges for its vocabulary")
    if len(set(tokens)) < len(tokens):
        double = next(token for token, count in Counter(tokens).items() if count > 1)
        _refuse(keys.path, f"has the token {double!r:.80} twice")
    last = len(tokens) - 1

    def token(name: str) -> int | None:
        return keys.maybe(f"tokenizer.ggml.{name}_token_id", last)

    return Vocabulary(
        model=model,
        pre=keys.text("tokenizer.ggml.pre"),
        tokens=tokens,
        types=cast(tuple[int, ...], keys.numbers("tokenizer.ggml.token_type", len(tokens), 1)),
        merges=merges,
        scores=keys.numbers("tokenizer.ggml.scores", len(tokens), 0.0),
        bos_id=token("bos"),
        eos_id=token("eos"),
        eot_id=token("eot"),
        eom_id=token("eom"),
        unknown_id=token("unknown"),
        pad_id=token("padding"),
        add_bos=keys.flag("tokenizer.ggml.add_bos_token"),
        add_eos=keys.flag("tokenizer.ggml.add_eos_token"),
        add_space_prefix=keys.flag("tokenizer.ggml.add_space_prefix"),
    )


def _check_layers(path: Path, tensors: tuple[GgufTensor, ...], layers: int) -> list[set[str]]:
    """Return the names of the parts of each layer, from the names of the tensors."""
    blocks: dict[int, set[str]] = {}
    for tensor in tensors:
        if match := re.fullmatch(r"blk\.(\d{1,9})\.(\w+)(\..*)?", tensor.name):
            blocks.setdefault(int(match[1]), set()).add(match[2])
    if set(blocks) != set(range(layers)):
        there = max(blocks, default=-1) + 1
        missing = next((layer for layer in range(layers) if layer not in blocks), None)
        gap = f" without layer {missing}" if missing is not None and missing < there else ""
        _refuse(path, f"states {layers:,} layers, but has the weights of {there:,}{gap}")
    return [blocks[layer] for layer in range(layers)]


def _layers_with(blocks: list[set[str]], *parts: str) -> tuple[int, ...]:
    return tuple(layer for layer, names in enumerate(blocks) if any(name.startswith(parts) for name in names))


def _check_embedding(path: Path, tensors: tuple[GgufTensor, ...], width: int, tokens: int) -> None:
    embedding = next((tensor for tensor in tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None:
        _refuse(path, "has no embedding")
    columns, *rows = embedding.dims
    if columns != width:
        _refuse(path, f"states an embedding of width {width:,}, but has one of width {columns:,}")
    if math.prod(rows) != tokens:
        what = f"has a vocabulary of {tokens:,} tokens, but an embedding of {math.prod(rows):,}"
        _refuse(path, f"{what}: the two are of different models", OTHER_KINDS)


def _check_shapes(path: Path, header: GgufHeader) -> None:
    """Compare the shapes of the weights with the metadata: llama.cpp refuses a difference without a reason."""
    if header.architecture not in {*GRANITES, "llama"}:
        return
    for tensor in header.tensors:
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        wanted = _layer_shapes(header, int(match[1])).get(match[2]) if match else None
        if wanted not in (None, tensor.dims):
            there, needed = (" x ".join(map(str, dims)) for dims in (tensor.dims, wanted or ()))
            _refuse(path, f"has the tensor {tensor.name} with the shape {there} instead of {needed}")


def _layer_shapes(header: GgufHeader, layer: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of a layer, with the contiguous dimension first."""
    width, feed = header.width, header.feed_forward[layer]
    queries, outputs = header.heads[layer] * header.key_length, header.heads[layer] * header.value_length
    keys, values = header.kv_heads[layer] * header.key_length, header.kv_heads[layer] * header.value_length
    shapes: dict[str, tuple[int, ...]] = {
        "attn_q": (width, queries),
        "attn_k": (width, keys),
        "attn_v": (width, values),
        "attn_output": (outputs, width),
        "ffn_gate": (width, feed),
        "ffn_up": (width, feed),
        "ffn_down": (feed, width),
    }
    if mamba := header.state_space:
        shapes["ssm_in"] = (width, mamba.inner_size + mamba.channels + mamba.time_step_rank)
        shapes["ssm_conv1d"] = (mamba.conv_kernel, mamba.channels)
        shapes["ssm_out"] = (mamba.inner_size, width)
    return shapes


def _quantization(keys: _Keys, tensors: tuple[GgufTensor, ...]) -> str:
    """Return the quantization that the file states, or the type of most of its weights."""
    stated = keys.get("general.file_type")
    if isinstance(stated, int) and stated in FILE_TYPES:
        return FILE_TYPES[stated]
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.kind] += math.prod(tensor.dims)
    return sizes.most_common(1)[0][0] if sizes else ""
