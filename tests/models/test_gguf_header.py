"""The header of a GGUF file is read, and every header that llama.cpp cannot handle is refused first."""

import random
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGML_QUANT_SIZES, GGUFReader, LlamaFileType

from granite_demo.errors import CorruptModelError, ModelError
from granite_demo.models.gguf_header import FILE_TYPES, TENSOR_TYPES, GgufHeader, StateSpace, read_header
from tests.gguf_files import (
    TINY_HYBRID,
    Metadata,
    Tensor,
    Typed,
    granite,
    header_bytes,
    text_bytes,
    value_bytes,
    write,
    write_shards,
)
from tests.llama_child import MISSING, LlamaChild

DENSE, TENSORS = granite(template="{{ messages }}")
HYBRID, HYBRID_TENSORS = granite(TINY_HYBRID)
TOKENS = "tokenizer.ggml."


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test writes its file."""
    return tmp_path / "model.gguf"


def changed(file: Path, keys: Metadata | None = None, tensors: list[Tensor] = TENSORS, **header: Any) -> Path:
    """The dense model with other keys; None takes one out."""
    metadata = {key: value for key, value in {**DENSE, **(keys or {})}.items() if value is not None}
    return write(file, metadata, tensors, **header)


def test_a_dense_model(file: Path) -> None:
    header = read_header(changed(file))
    assert isinstance(header, GgufHeader)
    assert (header.architecture, header.name, header.size_label) == ("granite", "Made Up", "tiny")
    assert (header.quantization, header.context_length, header.layers, header.width) == ("F32", 512, 2, 64)
    assert (header.heads, header.kv_heads, header.key_length, header.value_length) == ((4, 4), (2, 2), 16, 16)
    assert (header.attention_layers, header.recurrent_layers, header.state_space) == ((0, 1), (), None)
    assert (header.rope_dimensions, header.rope_base) == (16, 10000.0)
    assert header.norm_epsilon == pytest.approx(1e-5)
    assert (header.experts, header.experts_used, header.feed_forward) == (0, 0, (128, 128))
    assert header.file_size == file.stat().st_size
    vocabulary = header.vocabulary
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", "dbrx")
    assert list(vocabulary.tokens) == DENSE[f"{TOKENS}tokens"]
    assert list(vocabulary.types) == DENSE[f"{TOKENS}token_type"]
    assert list(vocabulary.merges) == DENSE[f"{TOKENS}merges"]
    assert vocabulary.tokens[vocabulary.eos_id or 0] == "<|end_of_text|>"
    assert (vocabulary.add_bos, vocabulary.add_eos) == (False, None)
    assert header.chat_template == "{{ messages }}"


def test_a_hybrid(file: Path) -> None:
    header = read_header(write(file, HYBRID, HYBRID_TENSORS))
    assert header.architecture == "granitehybrid"
    assert (header.kv_heads, header.attention_layers, header.recurrent_layers) == ((0, 2, 0), (1,), (0, 2))
    assert header.state_space == StateSpace(4, 128, 16, 1, 4)


def test_it_is_what_the_package_gguf_reads(file: Path) -> None:
    header, other = read_header(changed(file)), GGUFReader(changed(file))
    for tensor, told in zip(header.tensors, other.tensors, strict=True):
        assert tensor.name == told.name
        assert (tensor.dims, tensor.offset, tensor.size) == (
            tuple(int(dim) for dim in told.shape),
            told.data_offset,
            told.n_bytes,
        )
    assert header.tensor_bytes == sum(int(tensor.n_bytes) for tensor in other.tensors)


def test_the_tables_are_those_of_the_package_gguf() -> None:
    assert {(kind.value, kind.name, *size) for kind, size in GGML_QUANT_SIZES.items()} == {
        (number, *told) for number, told in TENSOR_TYPES.items()
    }
    assert {
        kind.value: kind.name.partition("_")[2] for kind in LlamaFileType if kind is not LlamaFileType.GUESSED
    } == FILE_TYPES


def test_the_quantization_by_the_weights_where_the_file_does_not_say_it(file: Path) -> None:
    metadata, tensors = granite(kind="Q8_0")
    assert read_header(write(file, {**metadata, "general.file_type": 1025}, tensors)).quantization == "Q8_0"


def test_named_templates(file: Path) -> None:
    keys = {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "{{ tools }}"}
    assert read_header(changed(file, keys)).named_templates == (("tool_use", "{{ tools }}"),)


def test_empty_tokens_get_the_names_that_llama_cpp_gives_them(file: Path) -> None:
    tokens = ["", "", *DENSE[f"{TOKENS}tokens"][2:]]
    assert read_header(changed(file, {f"{TOKENS}tokens": tokens})).vocabulary.tokens[:2] == ("[EMPTY_0]", "[EMPTY_1]")


def test_the_id_of_a_token_beyond_the_vocabulary_is_none(file: Path) -> None:
    assert read_header(changed(file, {f"{TOKENS}eos_token_id": 10**6})).vocabulary.eos_id is None


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_answers_end_where_llama_cpp_ends_them(file: Path) -> None:
    assert set(read_header(changed(file)).vocabulary.end_ids) == LlamaChild(file).end_ids


# Damaged files.


def cut(size: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:size]


def put(at: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + value + data[at + len(value) :]


def big_endian(data: bytes) -> bytes:
    return data[:4] + data[4:8][::-1] + data[8:16][::-1] + data[16:24][::-1] + data[24:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(0), "has only 0 bytes"),
        (cut(23), "has only 23 bytes"),
        (cut(24), "is truncated: it ends in its header, at 24 bytes. Download the file again"),
        (cut(1000), "is truncated: it ends in its header, at 1,000 bytes"),
        (cut(-1), r"is truncated: it has [\d,]+ of [\d,]+ bytes. Download"),
        (put(0, b"PK\3\4"), r"is not a GGUF file: it begins with b'PK\\x03\\x04'. Choose another"),
        (put(0, b"\0" * 24), "is not a GGUF file"),
        (put(4, b"\1"), "has GGUF version 1; the supported versions are 2 and 3"),
        (put(4, b"\4"), "has GGUF version 4; the supported versions are 2 and 3. Choose a file of version 3"),
        (put(4, b"\0"), "has GGUF version 0"),
        (big_endian, "for big-endian processors. Choose the little-endian file"),
        (put(8, b"\xff" * 8), "states 18,446,744,073,709,551,615 tensors"),
        (put(8, struct.pack("<Q", 2**40)), "states 1,099,511,627,776 tensors"),
        (put(16, struct.pack("<Q", 2**63)), "and 9,223,372,036,854,775,808 keys"),
        (put(16, struct.pack("<Q", 60_000)), "is (damaged|truncated)|has a (value|list)"),
        (put(24, struct.pack("<Q", 2**62)), "is truncated: it ends in its header"),
    ],
)
def test_a_damaged_file(file: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    # Without the padding at the end, the last tensor ends with the file.
    file.write_bytes(damage(changed(file).read_bytes().rstrip(b"\0")))
    with pytest.raises(CorruptModelError, match=message):
        read_header(file)


def raw(key: str, value: bytes) -> Callable[[bytes], bytes]:
    """A header with one key of these bytes, and nothing behind it."""
    return lambda data: b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text_bytes(key) + value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (struct.pack("<IQ", 8, 2**62), "is truncated"),
        (struct.pack("<IIQ", 9, 8, 2**62), "has a list of 4,611,686,018,427,387,904 values"),
        (struct.pack("<IIQ", 9, 8, 4_000_000), "is truncated"),
        (struct.pack("<IIQ", 9, 4, 4_000_000), "is truncated"),
        (struct.pack("<IIQ", 9, 9, 1), "has a list of the unsupported type 9"),
        (struct.pack("<IIQ", 9, 99, 1), "has a list of the unsupported type 99"),
        (struct.pack("<I", 13), "has a value of the unknown type 13"),
        (struct.pack("<IIQQ", 9, 8, 1, 2) + b"\xff\xfe", "has a list of texts that are not UTF-8"),
        (value_bytes(1), "has no general.architecture"),
    ],
)
def test_an_absurd_value(file: Path, value: bytes, message: str) -> None:
    file.write_bytes(raw("general.name", value)(b""))
    tracemalloc.start()
    with pytest.raises(CorruptModelError, match=message):
        read_header(file)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_key_twice(file: Path) -> None:
    keys = text_bytes("general.name") + value_bytes("a")
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + keys + keys)
    with pytest.raises(CorruptModelError, match=r"has the key 'general.name' twice"):
        read_header(file)


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        # llama.cpp aborts.
        ({"granite.block_count": 2**31 - 1}, "has the invalid value 2147483647 of granite.block_count"),
        ({"granite.block_count": 2**32 - 1}, "has the invalid value 4294967295 of granite.block_count"),
        ({"granite.block_count": 513}, "has the invalid value 513 of granite.block_count"),
        ({"granite.block_count": 0}, "has the invalid value 0 of granite.block_count"),
        ({"granite.context_length": 0}, "has the invalid value 0 of granite.context_length"),
        ({"granite.context_length": 2**31}, "has the invalid value 2147483648 of granite.context_length"),
        (
            {"granite.attention.layer_norm_rms_epsilon": NAN},
            "has the invalid value nan of granite.attention.layer_norm_rms_epsilon",
        ),
        ({"granite.attention.layer_norm_rms_epsilon": -1.0}, "has the invalid value -1.0 of the norm epsilon"),
        ({"granite.rope.dimension_count": 8}, "has rotary embeddings for 8 of the 16 dimensions of a head"),
        ({"granite.rope.dimension_count": 0}, "has rotary embeddings for 0 of the 16"),
        ({"granite.nextn_predict_layers": 3}, "has the invalid value 3 of granite.nextn_predict_layers"),
        ({"granite.expert_count": 4}, "has the invalid value 0 of granite.expert_used_count"),
        (
            {"granite.expert_count": 1025, "granite.expert_used_count": 1},
            "has the invalid value 1025 of granite.expert_count",
        ),
        ({"granite.expert_used_count": 2}, "has the invalid value 2 of granite.expert_used_count"),
        ({f"{TOKENS}model": "no_vocab"}, "has no vocabulary. Choose a file that has one"),
        ({f"{TOKENS}tokens": ["a"] * 300}, "has the token 'a' twice"),
        ({"general.alignment": 1}, "has the alignment 1: the file is damaged"),
        # llama.cpp refuses these without a reason, or gives wrong results.
        ({"general.architecture": None}, "has no general.architecture"),
        ({"granite.block_count": None}, "has the invalid value None of granite.block_count"),
        ({"granite.block_count": 3}, "states 3 layers, but has the weights of 2"),
        ({"granite.block_count": 1}, "states 1 layers, but has the weights of 2"),
        ({"granite.block_count": "two"}, "has the invalid value 'two' of granite.block_count"),
        ({"granite.block_count": True}, "has the invalid value True of granite.block_count"),
        ({"granite.context_length": Typed("i", -1)}, "has the invalid value -1 of granite.context_length"),
        ({"granite.embedding_length": 65}, "states an embedding of width 65, but has one of width 64"),
        ({"granite.attention.head_count": 2**31}, "has the invalid value 2147483648 of granite.attention.head_count"),
        (
            {"granite.attention.head_count": [4, 4, 4]},
            r"has the invalid value \(4, 4, 4\) of granite.attention.head_count",
        ),
        (
            {"granite.attention.head_count_kv": 4},
            "has the tensor blk.0.attn_k.weight with the shape 64 x 32 instead of 64 x 64",
        ),
        ({"granite.attention.head_count_kv": ["a", "b"]}, "of granite.attention.head_count_kv"),
        ({"granite.feed_forward_length": 2**31 - 1}, "has the tensor blk.0.ffn_gate.weight with the shape 64 x 128"),
        ({"granite.logit_scale": INFINITE}, "has the invalid value inf of granite.logit_scale"),
        ({"granite.rope.freq_base": NAN}, "has the invalid value nan of granite.rope.freq_base"),
        ({"granite.rope.freq_base": "high"}, "has the invalid value 'high' of granite.rope.freq_base"),
        ({f"{TOKENS}tokens": None}, "has no vocabulary"),
        ({f"{TOKENS}model": None}, "has no vocabulary"),
        ({f"{TOKENS}tokens": []}, "has no vocabulary"),
        ({f"{TOKENS}tokens": [1, 2]}, r"has the invalid value \(1, 2\) of tokenizer.ggml.tokens"),
        ({f"{TOKENS}tokens": ["a", "b"]}, "has a vocabulary of 2 tokens, but an embedding of .* different models"),
        ({f"{TOKENS}merges": None}, "has no merges"),
        ({f"{TOKENS}token_type": [1]}, r"has the invalid value \(1,\) of tokenizer.ggml.token_type"),
        ({f"{TOKENS}eos_token_id": "end"}, "has the invalid value 'end' of tokenizer.ggml.eos_token_id"),
        ({f"{TOKENS}add_bos_token": 1}, "has the invalid value 1 of tokenizer.ggml.add_bos_token"),
        ({"tokenizer.chat_template": 5}, "has the invalid value 5 of tokenizer.chat_template"),
        ({"general.alignment": "wide"}, "has the alignment 'wide'"),
        ({"split.count": Typed("H", 2)}, "is one of 2 files of a model, but its name does not show it"),
    ],
)
def test_keys_that_no_model_has(file: Path, keys: Metadata, message: str) -> None:
    with pytest.raises(CorruptModelError, match=message):
        read_header(changed(file, keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ssm.inner_size": 64}, "has the invalid value 64 of granitehybrid.ssm.inner_size"),
        ({"ssm.inner_size": 2**31}, "has the invalid value 2147483648 of granitehybrid.ssm.inner_size"),
        ({"ssm.state_size": 0}, "has the invalid value 0 of granitehybrid.ssm.state_size"),
        ({"ssm.state_size": 2**31 - 1}, "has the tensor blk.0.ssm_in.weight"),
        ({"ssm.conv_kernel": 5}, "has the tensor blk.0.ssm_conv1d.weight with the shape 4 x 160 instead of 5 x 160"),
        ({"ssm.time_step_rank": 3}, "has the tensor blk.0.ssm_in.weight with the shape 64 x 292 instead of 64 x 291"),
    ],
)
def test_keys_that_no_hybrid_has(file: Path, keys: Metadata, message: str) -> None:
    wrong = {f"granitehybrid.{key}": value for key, value in keys.items()}
    with pytest.raises(CorruptModelError, match=message):
        read_header(write(file, {**HYBRID, **wrong}, HYBRID_TENSORS))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general.architecture": "bert"}, "has a model of the architecture bert, which generates no text. Choose"),
        ({"general.architecture": "clip", "general.type": "mmproj"}, "has the vision part of a model"),
        ({"general.type": "adapter"}, "has an adapter"),
        ({"granite.attention.causal": False}, "has a model of the architecture granite, which generates no text"),
    ],
)
def test_a_file_that_holds_no_language_model(file: Path, keys: Metadata, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_header(changed(file, keys))


ODD = Tensor("odd.weight", (64,))


def with_info(**wrong: Any) -> bytes:
    """The header with a last tensor that is said to be otherwise than it is."""
    name, dims, kind, offset = (wrong.get(key, usual) for key, usual in _usual().items())
    info = text_bytes(name) + struct.pack(f"<I{len(dims)}Q", wrong.get("rank", len(dims)), *dims)
    header = header_bytes(DENSE, TENSORS, count=len(TENSORS) + 1, padded=False)
    return header + info + struct.pack("<IQ", kind, offset)


def _usual() -> dict[str, Any]:
    return {"name": "odd.weight", "dims": (64,), "kind": 0, "offset": sum(-(-one.size // 32) * 32 for one in TENSORS)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dims": (2**62,)}, "has the tensor 'odd.weight' with the shape 4611686018427387904 in F32"),
        ({"dims": (2**64 - 1,)}, "has the tensor 'odd.weight'"),
        ({"dims": (0,)}, "has the tensor 'odd.weight' with the shape 0 in F32"),
        ({"dims": (2**31 - 1,) * 3}, "has the tensor 'odd.weight'"),
        ({"dims": (33,), "kind": 8}, "has the tensor 'odd.weight' with the shape 33 in Q8_0"),
        ({"dims": (1, 1, 1, 1, 1)}, "has a tensor of 5 dimensions"),
        ({"rank": 2**31}, "has a tensor of 2,147,483,648 dimensions"),
        ({"kind": 4}, "has a tensor of the unknown type 4"),
        ({"kind": 999}, "has a tensor of the unknown type 999"),
        ({"offset": 2**50}, "has the tensor 'odd.weight' at 1,125,899,906,842,624 instead of"),
        ({"offset": 1}, "has the tensor 'odd.weight' at 1 instead of"),
        ({"dims": (2**20,)}, r"is truncated: it has [\d,]+ of [\d,]+ bytes"),
        ({"name": "output_norm.weight"}, "has the tensor 'output_norm.weight' twice"),
    ],
)
def test_a_tensor_that_cannot_be(file: Path, wrong: dict[str, Any], message: str) -> None:
    file.write_bytes(with_info(**wrong) + bytes(_usual()["offset"] + 4096))
    with pytest.raises(CorruptModelError, match=message):
        read_header(file)


def test_tensors_that_are_missing(file: Path) -> None:
    with pytest.raises(CorruptModelError, match="has no embedding"):
        read_header(changed(file, tensors=TENSORS[1:]))
    with pytest.raises(CorruptModelError, match="states 3 layers, but has the weights of 3 without layer 1"):
        apart = [replace(one, name=one.name.replace("blk.1.", "blk.2.")) for one in TENSORS]
        read_header(changed(file, {"granite.block_count": 3}, apart))
    with pytest.raises(CorruptModelError, match="states 2 layers, but has the weights of 0"):
        read_header(changed(file, tensors=TENSORS[:1]))


# Models in several files (shards).


def test_shards_read_as_one_model_from_any_of_them(tmp_path: Path) -> None:
    first = write_shards(tmp_path, "tiny", DENSE, TENSORS, 3)
    whole = read_header(changed(tmp_path / "whole.gguf"))
    header = read_header(tmp_path / "tiny-00002-of-00003.gguf")
    assert header.files == tuple(sorted(tmp_path.glob("tiny-*")))
    assert header.files[0] == first
    assert [(one.name, one.dims, one.size) for one in header.tensors] == [
        (one.name, one.dims, one.size) for one in whole.tensors
    ]
    assert {one.file for one in header.tensors} == {0, 1, 2}
    assert header.file_size == sum(path.stat().st_size for path in header.files)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    first = write_shards(tmp_path, "tiny", DENSE, TENSORS, 3)
    (tmp_path / "tiny-00002-of-00003.gguf").unlink()
    with pytest.raises(
        CorruptModelError, match=r"is one of 3 files of a model. Missing: tiny-00002-of-00003.gguf. Download all"
    ):
        read_header(first)


def test_a_shard_of_another_model_is_refused(tmp_path: Path) -> None:
    first = write_shards(tmp_path, "tiny", DENSE, TENSORS, 2)
    second = tmp_path / "tiny-00002-of-00002.gguf"
    first.rename(second)
    write_shards(tmp_path, "tiny", DENSE, TENSORS, 2)
    second.write_bytes(first.read_bytes())
    with pytest.raises(CorruptModelError, match="is not file 2 of 2, as its name states"):
        read_header(first)
    write(second, {"split.no": Typed("H", 1), "split.count": Typed("H", 2)}, TENSORS[-1:])
    with pytest.raises(CorruptModelError, match="and the other files of the model contain"):
        read_header(first)


def test_a_shard_that_is_cut_off_is_named(tmp_path: Path) -> None:
    first = write_shards(tmp_path, "tiny", DENSE, TENSORS, 2)
    second = tmp_path / "tiny-00002-of-00002.gguf"
    second.write_bytes(second.read_bytes()[:-64])
    with pytest.raises(CorruptModelError, match=r"tiny-00002-of-00002.gguf is truncated"):
        read_header(first)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(CorruptModelError, match=r"none.gguf cannot be read: No such file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(CorruptModelError, match="cannot be read: Is a directory"):
        read_header(tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_no_damage_to_a_header_ends_in_another_error(file: Path, seed: int) -> None:
    metadata, tensors = (DENSE, TENSORS) if seed % 2 else (HYBRID, HYBRID_TENSORS)
    chance = random.Random(seed)
    header = len(header_bytes(metadata, tensors))
    data = bytearray(write(file, metadata, tensors).read_bytes())
    for _ in range(15):
        broken = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 20))):
            at = chance.randrange(header)
            broken[at : at + 1] = chance.choice(
                (bytes([broken[at] ^ 1 << chance.randrange(8)]), b"", b"\xff" * 8, chance.randbytes(3))
            )
        file.write_bytes(broken[: chance.choice((len(broken), chance.randrange(len(broken))))])
        with suppress(ModelError):
            read_header(file)
