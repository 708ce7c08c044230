"""Loading a GGUF file. These tests do not need llama-cpp-python; tests/engine/interleaved/test_gguf.py does."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from granite_demo.errors import ConfigurationError, OutOfMemoryError
from granite_demo.loading import llama_cpp
from granite_demo.loading.gguf import choose_context


@pytest.mark.parametrize(
    ("wanted", "free", "expected"),
    [
        (None, 4 * 4 * 32768, 32768),  # a quarter of the memory holds four conversations of the maximum length
        (None, 4 * 4 * 10000, 10000),  # four shorter ones
        (None, 4 * 10000, 4096),  # two: four would be too short
        (None, 4 * 3000, 3000),  # one
        (20000, 4 * 25000, 20000),  # as long as requested, although there is only one
        (20000, 4 * 15000, 15000),
    ],
)
def test_memory_is_for_several_conversations(wanted: int | None, free: int, expected: int) -> None:
    file: Any = SimpleNamespace(context_length=32768, token_bytes=1)
    assert choose_context(file, wanted, free)[0] == expected


def test_the_memory_of_a_hybrid_is_unknown() -> None:
    file: Any = SimpleNamespace(context_length=32768, token_bytes=None)
    assert choose_context(file, None, 1)[0] == 4096
    assert choose_context(file, 20000, 1)[0] == 20000


def test_without_memory_for_a_conversation_it_is_refused() -> None:
    file: Any = SimpleNamespace(context_length=32768, token_bytes=1)
    with pytest.raises(OutOfMemoryError):
        choose_context(file, None, 400)


def test_without_the_package_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install llama-cpp-python"):
        llama_cpp.LlamaFile(tmp_path / "model.gguf")
