"""The calculated memory of a GGUF file equals the memory that llama.cpp allocates."""

from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest

from granite_demo.models.gguf_header import read_header
from granite_demo.models.gguf_memory import cache_bytes_per_token, memory_of
from tests.gguf_files import SHAPES, GraniteShape, granite, write
from tests.llama_child import MISSING, LlamaChild

MIB = 2**20
DENSE = GraniteShape(8, 256, 4, 2, 512, 4096, 2048)
HYBRID = replace(DENSE, attention=(1, 5), ssm_heads=8, ssm_state=128)
needs_llama = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def test_keys_and_values_of_a_token(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "dense.gguf", *granite(DENSE)))
    numbers = 8 * 2 * 2 * 64
    """Layers, keys and values, heads, numbers of a head."""
    assert cache_bytes_per_token(header) == 2 * numbers
    assert cache_bytes_per_token(header, "q8_0") == numbers * 34 // 32
    assert cache_bytes_per_token(header, "q4_0") == numbers * 18 // 32
    assert memory_of(header, 1000, 1).cache == 1024 * 2 * numbers


def test_only_the_layers_with_attention_have_a_cache_and_each_slot_has_states(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "hybrid.gguf", *granite(HYBRID)))
    assert cache_bytes_per_token(header) == 2 * 2 * 2 * 2 * 64
    convolution, state = 3 * (512 + 2 * 128), 512 * 128
    assert memory_of(header, 256, 1).states == 6 * 4 * (convolution + state)
    assert memory_of(header, 256, 5).states == 5 * memory_of(header, 256, 1).states


def test_the_total_is_the_sum_of_the_parts(tmp_path: Path) -> None:
    memory = memory_of(read_header(write(tmp_path / "hybrid.gguf", *granite(HYBRID, "Q4_0"))), 256, 2)
    assert memory.total == sum(astuple(memory))
    assert all(astuple(memory))


def compare(path: Path, **asked: Any) -> None:
    """Compare the calculated memory with the allocations in llama.cpp's log."""
    child = LlamaChild(path, **asked)
    told = {"context": 512, "slots": 1, "kv_type": "f16", "batch": 128, **asked}
    memory = memory_of(read_header(path), told["context"], told["slots"], told["kv_type"], batch=told["batch"])
    assert child.code == 0, child.log[-2000:]
    assert memory.cache / MIB == pytest.approx(child.mebibytes("KV"), abs=0.01)
    assert memory.states / MIB == pytest.approx(child.mebibytes("RS"), abs=0.01)
    assert (memory.weights + memory.repacked) / MIB == pytest.approx(child.mebibytes("model"), rel=0.05)
    allocated = sum(map(child.mebibytes, ("model", "KV", "RS", "compute", "output")))
    assert (memory.total - memory.process) / MIB == pytest.approx(allocated, rel=0.05)
    assert memory.compute / MIB == pytest.approx(child.mebibytes("compute") + child.mebibytes("output"), rel=0.1)


@needs_llama
@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("shape", [DENSE, HYBRID], ids=["dense", "hybrid"])
def test_it_is_what_llama_cpp_allocates(tmp_path: Path, shape: GraniteShape, kind: str) -> None:
    path = write(tmp_path / "model.gguf", *granite(shape, kind))
    compare(path, context=1000)
    compare(path, context=4000, slots=4, kv_type="q8_0", batch=256)


@pytest.mark.release
@needs_llama
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_what_llama_cpp_allocates_for_a_real_shape(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "model.gguf", *granite(SHAPES[name], "Q8_0"))
    for context, slots, kind in ((2048, 1, "f16"), (8192, 4, "f16"), (8192, 4, "q8_0"), (32768, 8, "q4_0")):
        compare(path, context=context, slots=slots, kv_type=kind)
