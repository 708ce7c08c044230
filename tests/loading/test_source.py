"""The files that a model is loaded from, and why. These tests do not need llama-cpp-python."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from granite_demo.errors import ConfigurationError, UnknownModelError
from granite_demo.hub import download, sample
from granite_demo.hub.gguf import FASTER
from granite_demo.loading.source import Source, find_safetensors, find_source, why_not
from granite_demo.models import catalogue, registry
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.model_status import REQUESTED
from tests.fakehub import GGUF, GGUF_REPO, GRANITE, FakeHub, gguf_hub
from tests.tinymodels import write_checkpoint

AUTO = LoadOptions(GRANITE, device="cpu")
FETCH = f"hf download {GGUF_REPO} {GGUF}"


def test_a_cpu_with_the_package_uses_it() -> None:
    assert why_not(AUTO, "cpu", installed=lambda: True) == ""


@pytest.mark.parametrize(
    ("options", "device", "installed", "reason"),
    [
        (AUTO, "cpu", False, "pip install llama-cpp-python"),
        (AUTO, "cuda", True, "there is a GPU"),
        (LoadOptions(dtype="float32"), "cpu", True, "a precision"),
        (LoadOptions(revision="v1"), "cpu", True, "a revision"),
        (LoadOptions(engine="dynamic"), "cpu", True, "another engine"),
    ],
)
def test_why_it_is_not_used(options: LoadOptions, device: str, installed: bool, reason: str) -> None:
    assert reason in why_not(options, device, installed=lambda: installed)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a model's safetensors and GGUF files, and an empty hub cache. llama-cpp-python seems installed."""
    monkeypatch.setattr("granite_demo.loading.source.why_not", lambda options, device: "")
    with gguf_hub(tmp_path / "hub", monkeypatch) as server:
        yield server


def find(tmp_path: Path, options: LoadOptions = AUTO, device: str = "cpu", **more: Any) -> Source:
    return find_source(tmp_path, options, device, lambda *_: None, threading.Event(), **more)


def test_a_cpu_downloads_the_gguf_file_of_a_model(server: FakeHub, tmp_path: Path) -> None:
    source = find(tmp_path)
    assert (source.spec.name, source.gguf_because) == (GRANITE, FASTER)
    assert source.gguf
    assert source.gguf.name == GGUF
    assert (source.folder / "tokenizer.json").is_file()
    assert not server.transfers("model.safetensors")
    assert find(tmp_path) == source
    assert len(server.transfers(GGUF)) == 1


def test_a_request_for_the_engine_downloads_the_file(server: FakeHub, tmp_path: Path) -> None:
    asked = replace(AUTO, engine="gguf")
    source = find(tmp_path, asked, "cuda")
    assert source.gguf
    assert source.gguf_because == REQUESTED
    with pytest.raises(UnknownModelError, match="granite-4.0-micro-GGUF"):
        find(tmp_path, replace(asked, model="granite-4.0-micro"))


@pytest.mark.parametrize("reason", [FETCH, "the download failed: There is no model"])
def test_without_a_gguf_file_it_is_the_safetensors_with_a_reason(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    checkpoint = download.Checkpoint(tmp_path, "a" * 40)
    monkeypatch.setattr(download, "fetch", lambda *_: checkpoint)
    if reason == FETCH:
        monkeypatch.setattr(download, "cached", lambda *_: checkpoint)
    else:
        del server.repos[GGUF_REPO]
    source = find(tmp_path)
    assert (source.folder, source.commit, source.gguf) == (tmp_path, "a" * 40, None)
    assert reason in source.gguf_because
    assert not server.transfers(GGUF)


def test_a_gpu_gets_the_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "fetch", lambda *_: download.Checkpoint(tmp_path, "a" * 40))
    assert find(tmp_path, device="cuda") == Source(
        registry.resolve(GRANITE), tmp_path, "a" * 40, gguf_because="there is a GPU"
    )


def test_processes_do_not_share_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "ensure_sample", lambda *_: tmp_path)
    options = LoadOptions("sample", device="cpu")
    assert find(tmp_path, options, processes=2) == Source(catalogue.SAMPLE, tmp_path)
    with pytest.raises(ConfigurationError, match="has no GGUF file here"):
        find(tmp_path, replace(options, engine="gguf"), processes=2)


def test_a_path_is_its_files(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "granite")
    options, spec = LoadOptions(str(folder), device="cpu"), registry.resolve(str(folder))
    assert find(tmp_path, options) == find_safetensors(tmp_path, spec, None, lambda *_: None, threading.Event())
    assert find(tmp_path, options) == Source(spec, folder)
    with pytest.raises(ConfigurationError, match="has no GGUF file here"):
        find(tmp_path, replace(options, engine="gguf"))


def test_only_the_gguf_engine_runs_a_gguf_file(tmp_path: Path) -> None:
    (file := tmp_path / "model.gguf").touch()
    options = LoadOptions(str(file), device="cpu")
    for engine in ("auto", "gguf"):
        source = find(tmp_path, replace(options, engine=engine), "cuda")
        assert (source.gguf, source.gguf_because) == (file, "the model is a GGUF file")
    with pytest.raises(ConfigurationError, match="only the engine gguf can run"):
        find(tmp_path, replace(options, engine="dynamic"))


def test_the_default_model_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = write_checkpoint(tmp_path / "tiny", "granite"), list[bool]()

    def choose(cache_dir: Path, free: int, on_gpu: bool) -> tuple[str, str]:
        asked.append(on_gpu)
        return str(folder), "a test"

    monkeypatch.setattr("granite_demo.hub.default_model.choose_model", choose)
    source = find(tmp_path, LoadOptions(device="cpu", model="auto"))
    assert (source.folder, source.chosen_because, asked) == (folder, "a test", [False])
