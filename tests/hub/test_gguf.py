"""Finds and downloads the GGUF file of a model."""

import threading
from pathlib import Path

import pytest

from granite_demo.errors import ConfigurationError
from granite_demo.hub import download
from granite_demo.hub import gguf as hub_gguf
from granite_demo.hub.gguf import cached_file, file_in
from granite_demo.models import catalogue, registry
from tests.fakehub import GGUF, GRANITE, gguf_hub


def test_a_file_or_the_only_one_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "granite-4.0-micro-Q4_K_M.gguf"
    assert file_in(tmp_path) is None
    file.touch()
    assert file_in(file) == file_in(tmp_path) == file
    assert registry.resolve(str(file)).path == registry.resolve(str(tmp_path / file.name)).path == file
    assert registry.resolve(str(tmp_path)).path == tmp_path
    (tmp_path / "other.gguf").touch()
    with pytest.raises(ConfigurationError, match="Name one of them"):
        file_in(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert file_in(tmp_path) is None


def test_one_file_and_the_tokenizer_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, details = registry.resolve(GRANITE), list[str]()
    with gguf_hub(tmp_path / "hub", monkeypatch) as server:
        assert cached_file(spec) is None
        file = hub_gguf.fetch(spec, lambda stage, fraction, detail: details.append(detail), threading.Event())
    assert file.name == GGUF
    assert file.read_bytes() == b"GGUF, but no model"
    assert cached_file(spec) == file
    assert cached_file(catalogue.SAMPLE) is None
    folder = hub_gguf.tokenizer_folder(spec)
    assert folder
    assert [path.name for path in folder.iterdir()] == ["tokenizer.json"]
    assert not server.transfers("model.safetensors")
    assert not server.transfers("granite-4.0-350m-f16.gguf")
    assert download.cached(spec.repo_id or "") is None
    assert any(" of " in detail and "MB" in detail and hub_gguf.FASTER in detail for detail in details)
