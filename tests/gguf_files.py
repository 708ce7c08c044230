"""GGUF files written byte by byte: whole ones of any Granite shape with random weights, and broken ones.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; keys and names of tensors are those of
llama.cpp's architectures ``granite``, ``granitehybrid`` and ``llama``. Imports no torch.

``python -m tests.gguf_files h-350m Q8_0 FILE`` writes one of ``SHAPES`` at its real size.
"""

import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from granite_demo.models.gguf_header import TENSOR_TYPES

CODES = {"B": 0, "b": 1, "H": 2, "h": 3, "I": 4, "i": 5, "f": 6, "?": 7, "s": 8, "a": 9, "Q": 10, "q": 11, "d": 12}
"""Value types of GGUF, by the letters of ``struct``; ``s`` is a text, ``a`` an array."""
TYPE_NUMBERS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
ALIGNMENT = 32
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True)
class Typed:
    """A value with the letter of its type, where the usual one of its Python type is not wanted."""

    kind: str
    value: Any


@dataclass(frozen=True)
class Tensor:
    """A tensor of GGUF: ``dims`` with the contiguous one first. ``data``: zeros by default."""

    name: str
    dims: tuple[int, ...]
    kind: str = "F32"
    data: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes of its data."""
        _, block, width = TENSOR_TYPES[TYPE_NUMBERS[self.kind]]
        return int(np.prod(self.dims, dtype=object)) // block * width


Metadata = dict[str, Any]


def value_bytes(value: Any) -> bytes:
    """``value`` with its type before it: int as uint32, float as float32, a list by its first item (int as int32)."""
    kind, value = (value.kind, value.value) if isinstance(value, Typed) else (_kind(value), value)
    if kind == "a":
        inner = "i" if value and _kind(value[0]) == "I" else _kind(value[0]) if value else "i"
        items = b"".join(_bare(inner, item) for item in value)
        return struct.pack("<IIQ", CODES["a"], CODES[inner], len(value)) + items
    return struct.pack("<I", CODES[kind]) + _bare(kind, value)


def _kind(value: Any) -> str:
    kinds = {bool: "?", int: "I", float: "f", str: "s", bytes: "s", list: "a"}
    return value.kind if isinstance(value, Typed) else kinds[type(value)]


def _bare(kind: str, value: Any) -> bytes:
    if isinstance(value, Typed):
        return _bare(value.kind, value.value)
    if kind == "s":
        return text_bytes(value)
    return struct.pack(f"<{kind}", value)


def text_bytes(text: str | bytes) -> bytes:
    """A text of GGUF: its length and its bytes."""
    encoded = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(encoded)) + encoded


def info_bytes(tensor: Tensor, offset: int) -> bytes:
    """What the header says of a tensor."""
    dims = struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
    return text_bytes(tensor.name) + dims + struct.pack("<IQ", TYPE_NUMBERS[tensor.kind], offset)


def header_bytes(
    metadata: Mapping[str, Any],
    tensors: Sequence[Tensor],
    *,
    version: int = 3,
    keys: int | None = None,
    count: int | None = None,
    padded: bool = True,
) -> bytes:
    """All before the data. ``keys`` and ``count``: what it says of how many keys and tensors there are."""
    parts = [b"GGUF", struct.pack("<I", version)]
    parts.append(struct.pack("<QQ", len(tensors) if count is None else count, len(metadata) if keys is None else keys))
    parts += [text_bytes(key) + value_bytes(value) for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        parts.append(info_bytes(tensor, offset))
        offset += _padded(tensor.size)
    header = b"".join(parts)
    return header.ljust(_padded(len(header)), b"\0") if padded else header


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def write(path: Path, metadata: Mapping[str, Any], tensors: Sequence[Tensor], **header: Any) -> Path:
    """A GGUF file, tensor by tensor."""
    with path.open("wb") as file:
        file.write(header_bytes(metadata, tensors, **header))
        for tensor in tensors:
            file.write((tensor.data or bytes(tensor.size)).ljust(_padded(tensor.size), b"\0"))
    return path


def write_shards(folder: Path, name: str, metadata: Mapping[str, Any], tensors: Sequence[Tensor], shards: int) -> Path:
    """The same in ``shards`` files; returns the first."""
    each = -(-len(tensors) // shards)
    for number in range(shards):
        told = {
            "split.no": Typed("H", number),
            "split.count": Typed("H", shards),
            "split.tensors.count": Typed("i", len(tensors)),
        }
        given = {**metadata, **told} if number == 0 else told
        path = folder / f"{name}-{number + 1:05d}-of-{shards:05d}.gguf"
        write(path, given, tensors[number * each : (number + 1) * each])
    return folder / f"{name}-00001-of-{shards:05d}.gguf"


def byte_alphabet() -> list[str]:
    """The 256 letters with which byte-level BPE writes the 256 bytes, in the order of the bytes (GPT-2)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]


GRANITE_3_CONTROLS = ("<|end_of_text|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
GRANITE_4_CONTROLS = (
    "<|pad|>",
    "<|end_of_text|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|start_of_role|>",
    "<|end_of_role|>",
    "<|unk|>",
)
WORDS = (
    "Ġt Ġa he in re Ġthe er on Ġs at en or Ġw is an Ġ1 12 123 ĠĠ ĠĠĠ ĠĠĠĠ Ċ ĊĊ ĊĠ def Ġdef ret return Ã© ðŁ ðŁĻ ðŁĻĤ"
)


def vocabulary(pre: str = "dbrx", size: int = 0, template: str | None = None) -> Metadata:
    """The keys of a byte-level BPE vocabulary: bytes, some merges, control tokens, and merges up to ``size`` tokens."""
    alphabet = byte_alphabet()
    tokens, merges = list(alphabet), []
    known = set(tokens)

    def merge(left: str, right: str) -> None:
        if left + right not in known and left in known and right in known:
            merges.append(f"{left} {right}")
            tokens.append(left + right)
            known.add(left + right)

    for word in WORDS.split():
        for cut in range(1, len(word)):
            merge(word[:cut], word[cut])
    controls = GRANITE_3_CONTROLS if pre in ("refact", "starcoder") else GRANITE_4_CONTROLS
    added = [*controls, "<tool_call>", "</tool_call>"]
    for left, right in ((left, right) for left in alphabet for right in alphabet):
        if len(tokens) >= size - len(added) - 1:
            break
        merge(left, right)
    for left, right in ((word, letter) for word in tokens[512:] for letter in alphabet):
        if len(tokens) >= size - len(added) - 1:
            break
        merge(left, right)
    tokens.append("Ġxyzzy")  # without merges
    types = [NORMAL] * len(tokens) + [CONTROL] * len(controls) + [USER_DEFINED] * 2
    end = len(tokens) + controls.index("<|end_of_text|>")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, *added],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": end,
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.padding_token_id": len(tokens),
        "tokenizer.ggml.add_bos_token": False,
        **({"tokenizer.chat_template": template} if template is not None else {}),
    }


PIECES = "▁t he in re ▁a er ou on ▁the th ing ▁w hat en ▁is is ll ▁▁ ▁▁▁▁ ▁he ello ▁Hello 12 23 ea ▁c ▁ca fé"


def sentence_piece() -> Metadata:
    """The keys of a vocabulary of SentencePiece: control tokens, 256 bytes, letters, and pieces by their scores."""
    letters = ["▁", *(chr(code) for code in range(33, 127)), "é", "ü", "ß"]
    pieces = PIECES.split()
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *pieces, *(letter for letter in letters if letter not in pieces)]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(tokens) - 259)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(place) for place in range(len(tokens) - 259)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


@dataclass(frozen=True)
class GraniteShape:
    """The sizes of a Granite. ``attention``: the layers with attention, where the others are Mamba-2."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 128
    context: int = 512
    vocab: int = 0
    attention: tuple[int, ...] | None = None
    ssm_heads: int = 4
    ssm_state: int = 16
    ssm_groups: int = 1
    ssm_kernel: int = 4

    @property
    def inner(self) -> int:
        """Channels of the state space model."""
        return 2 * self.width

    @property
    def architecture(self) -> str:
        """By llama.cpp's names."""
        return "granite" if self.attention is None else "granitehybrid"


TINY = GraniteShape()
TINY_HYBRID = replace(TINY, attention=(1,), layers=3)
SHAPES = {
    "350m": GraniteShape(28, 1024, 16, 4, 2048, 32768, 100352),
    "h-350m": GraniteShape(32, 768, 12, 4, 2048, 32768, 100352, (10, 13, 17, 27), ssm_heads=48, ssm_state=128),
}
"""granite-4.0-350m and granite-4.0-h-350m."""


def granite(
    shape: GraniteShape = TINY, kind: str = "F32", words: Metadata | None = None, **tokens: Any
) -> tuple[Metadata, list[Tensor]]:
    """Keys and tensors of a Granite with random weights of type ``kind``: F32, F16, Q8_0 or Q4_0."""
    words = words or vocabulary(size=shape.vocab, **tokens)
    name, hybrid = shape.architecture, shape.attention is not None
    attention = range(shape.layers) if shape.attention is None else shape.attention
    kv_heads = [shape.kv_heads * (layer in attention) for layer in range(shape.layers)]
    head = shape.width // shape.heads
    metadata: Metadata = {
        "general.architecture": name,
        "general.type": "model",
        "general.name": "Made Up",
        "general.size_label": "tiny",
        "general.file_type": {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7}[kind],
        f"{name}.block_count": shape.layers,
        f"{name}.context_length": shape.context,
        f"{name}.embedding_length": shape.width,
        f"{name}.feed_forward_length": shape.feed_forward,
        f"{name}.attention.head_count": shape.heads,
        f"{name}.attention.head_count_kv": kv_heads if hybrid else shape.kv_heads,
        f"{name}.rope.freq_base": 10000.0,
        f"{name}.rope.dimension_count": head,
        f"{name}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{name}.attention.scale": 1 / head,
        f"{name}.embedding_scale": 12.0,
        f"{name}.residual_scale": 0.22,
        f"{name}.logit_scale": 4.0,
        f"{name}.vocab_size": len(words["tokenizer.ggml.tokens"]),
    }
    if hybrid:
        metadata |= {
            f"{name}.ssm.conv_kernel": shape.ssm_kernel,
            f"{name}.ssm.state_size": shape.ssm_state,
            f"{name}.ssm.group_count": shape.ssm_groups,
            f"{name}.ssm.inner_size": shape.inner,
            f"{name}.ssm.time_step_rank": shape.ssm_heads,
            f"{name}.rope.scaling.finetuned": False,
        }
    plans = list(_plan(shape, len(words["tokenizer.ggml.tokens"]), attention))
    return {**metadata, **words}, list(_filled(plans, kind))


def _plan(shape: GraniteShape, vocab: int, attention: Iterable[int]) -> Iterator[Tensor]:
    """The tensors without data; those of type "" are matrices, whose type is chosen."""
    width, keys = shape.width, shape.kv_heads * shape.width // shape.heads
    yield Tensor("token_embd.weight", (width, vocab), "")
    yield Tensor("output_norm.weight", (width,))
    channels = shape.inner + 2 * shape.ssm_groups * shape.ssm_state
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        yield Tensor(f"{at}attn_norm.weight", (width,))
        if layer in attention:
            for part, rows in (("q", width), ("k", keys), ("v", keys), ("output", width)):
                yield Tensor(f"{at}attn_{part}.weight", (width, rows), "")
        else:
            yield Tensor(f"{at}ssm_in.weight", (width, shape.inner + channels + shape.ssm_heads), "")
            yield Tensor(f"{at}ssm_conv1d.weight", (shape.ssm_kernel, channels))
            yield Tensor(f"{at}ssm_conv1d.bias", (channels,))
            yield Tensor(f"{at}ssm_dt.bias", (shape.ssm_heads,))
            yield Tensor(f"{at}ssm_a", (1, shape.ssm_heads))
            yield Tensor(f"{at}ssm_d", (1, shape.ssm_heads))
            yield Tensor(f"{at}ssm_norm.weight", (shape.inner // shape.ssm_groups, shape.ssm_groups))
            yield Tensor(f"{at}ssm_out.weight", (shape.inner, width), "")
        yield Tensor(f"{at}ffn_norm.weight", (width,))
        yield Tensor(f"{at}ffn_gate.weight", (width, shape.feed_forward), "")
        yield Tensor(f"{at}ffn_down.weight", (shape.feed_forward, width), "")
        yield Tensor(f"{at}ffn_up.weight", (width, shape.feed_forward), "")


def _filled(plans: Iterable[Tensor], kind: str, seed: int = 0) -> Iterator[Tensor]:
    random = np.random.default_rng(seed)
    for plan in plans:
        shape = plan.dims[::-1]
        if "norm" in plan.name or plan.name.endswith("ssm_d"):
            yield replace(plan, data=np.ones(shape, "<f4").tobytes())
        elif plan.name.endswith("ssm_a"):
            yield replace(plan, data=(-random.uniform(1, 16, shape)).astype("<f4").tobytes())
        else:
            real = plan.kind or kind
            yield replace(plan, kind=real, data=_noise(random, shape, real))


def _noise(random: np.random.Generator, shape: tuple[int, ...], kind: str) -> bytes:
    """Weights around 0 of about 0.02. A block of the others is a float16 scale and 32 random bytes or half bytes."""
    if kind in ("F32", "F16"):
        return (0.02 * random.standard_normal(shape, "f4")).astype({"F32": "<f4", "F16": "<f2"}[kind]).tobytes()
    width, largest = {"Q8_0": (32, 73), "Q4_0": (16, 4.6)}[kind]
    blocks = np.empty(int(np.prod(shape)) // 32, dtype=[("scale", "<f2"), ("values", "u1", width)])
    blocks["scale"] = 0.02 / largest
    blocks["values"] = random.integers(0, 256, (len(blocks), width), "u1")
    return blocks.tobytes()


if __name__ == "__main__":
    write(Path(sys.argv[3]), *granite(SHAPES[sys.argv[1]], sys.argv[2]))
