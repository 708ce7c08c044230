"""When a GGUF file is used, and the reason when it is not. These tests do not need llama-cpp-python."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from granite_demo.backends.model_source import why_not
from granite_demo.backends.open_model import open_model
from granite_demo.errors import (
    ConfigurationError,
    CorruptModelError,
    GraniteDemoError,
    OutOfMemoryError,
    UnknownModelError,
)
from granite_demo.hub import download
from granite_demo.hub import gguf as hub_gguf
from granite_demo.hub.gguf import cached_file, file_in
from granite_demo.loading import llama_cpp
from granite_demo.loading.gguf import choose_context
from granite_demo.models import catalogue, registry
from granite_demo.types.load_options import LoadOptions
from tests.fakehub import FakeHub, model_files
from tests.tinymodels import write_checkpoint

AUTO = LoadOptions(device="cpu")


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


def test_without_the_package_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install llama-cpp-python"):
        llama_cpp.LlamaFile(tmp_path / "model.gguf")


def test_the_engine_needs_a_file(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "granite")
    options = LoadOptions(model=str(folder), device="cpu", engine="gguf")
    with pytest.raises(ConfigurationError, match="has no GGUF file here"):
        open_model(tmp_path, 1, options, lambda stage, fraction, detail: None, threading.Event())


GRANITE = "granite-4.0-350m"
GGUF_REPO, GGUF = "ibm-granite/granite-4.0-350m-GGUF", "granite-4.0-350m-Q4_K_M.gguf"
FETCH = f"hf download {GGUF_REPO} {GGUF}"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def in_cache(cache: Path, repo: str, name: str) -> Path:
    folder = cache / f"models--{repo.replace('/', '--')}"
    file = folder / "snapshots" / ("a" * 40) / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF, but no model")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    return file


def load(tmp_path: Path, **options: Any) -> None:
    wanted = LoadOptions(**{"model": GRANITE, "device": "cpu", **options})
    open_model(tmp_path, 0, wanted, lambda stage, fraction, detail: None, threading.Event())


@pytest.fixture
def server(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a model's safetensors and GGUF files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with FakeHub() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        server.add(GGUF_REPO, {GGUF: b"GGUF, but no model", "granite-4.0-350m-f16.gguf": b"GGUF" * 1000})
        server.add(f"ibm-granite/{GRANITE}", model_files())
        yield server


def test_one_file_and_the_tokenizer_are_fetched(server: FakeHub) -> None:
    spec, told = registry.resolve(GRANITE), list[str]()
    file = hub_gguf.fetch(spec, lambda stage, fraction, detail: told.append(detail), threading.Event())
    assert file.read_bytes() == b"GGUF, but no model"
    assert cached_file(spec) == file
    folder = hub_gguf.tokenizer_folder(spec)
    assert folder
    assert [path.name for path in folder.iterdir()] == ["tokenizer.json"]
    assert not server.transfers("model.safetensors")
    assert not server.transfers("granite-4.0-350m-f16.gguf")
    assert download.cached(spec.repo_id or "") is None
    assert any(" of " in detail and "MB" in detail and hub_gguf.FASTER in detail for detail in told)


def test_a_request_for_the_engine_downloads_the_file(server: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(GraniteDemoError, match=r"llama\.cpp cannot read .*350m-Q4_K_M\.gguf|is read by llama-cpp"):
        load(tmp_path, engine="gguf")
    assert server.transfers(GGUF)
    with pytest.raises(UnknownModelError, match="granite-4.0-micro-GGUF"):
        load(tmp_path, engine="gguf", model="granite-4.0-micro")


def test_a_file_in_the_cache_is_used(hub_cache: Path, tmp_path: Path) -> None:
    file = in_cache(hub_cache, GGUF_REPO, GGUF)
    assert cached_file(registry.resolve(GRANITE)) == file
    assert cached_file(catalogue.SAMPLE) is None
    # The file is not a model, and llama-cpp-python may be missing.
    with pytest.raises(GraniteDemoError, match=r"llama\.cpp cannot read .*350m-Q4_K_M\.gguf|is read by llama-cpp"):
        load(tmp_path, engine="gguf")


@pytest.mark.parametrize("reason", [FETCH, "is damaged", "could not be fetched: There is no model"])
def test_without_a_valid_file_safetensors_are_loaded_with_a_reason(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def damaged(path: Path, *_: Any, **__: Any) -> None:
        raise CorruptModelError(f"{path.name} is damaged")

    folder = write_checkpoint(tmp_path / "tiny", "granite")
    checkpoint = download.Checkpoint(folder, "a" * 40)
    if reason == FETCH:
        monkeypatch.setattr(download, "cached", lambda *_: checkpoint)
    if reason.endswith("no model"):
        del server.repos[GGUF_REPO]
    monkeypatch.setattr("granite_demo.loading.gguf.load_gguf", damaged)
    monkeypatch.setattr(download, "fetch", lambda *_: checkpoint)
    monkeypatch.setattr("granite_demo.backends.model_source.why_not", lambda options, device: "")
    options = LoadOptions(model=GRANITE, device="cpu")
    ready = open_model(tmp_path, 0, options, lambda stage, fraction, detail: None, threading.Event())
    ready.engine.close()
    assert reason in ready.loaded.no_gguf
    assert ("GGUF file", "not used", ready.loaded.no_gguf) in ready.facts
    assert bool(server.transfers(GGUF)) is (reason == "is damaged")


def test_another_engine_does_not_run_a_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    options = LoadOptions(model=str(file), device="cpu", engine="dynamic")
    with pytest.raises(ConfigurationError, match="only the engine gguf"):
        open_model(tmp_path, 1, options, lambda stage, fraction, detail: None, threading.Event())
