"""When a GGUF file is taken, and what is told where it is not. Works without llama-cpp-python."""

import sys
import threading
from pathlib import Path

import pytest

from granite_demo import llama, registry
from granite_demo.errors import ConfigurationError
from granite_demo.gguf_files import file_in, why_not
from granite_demo.opening import open_model
from granite_demo.status import LoadOptions
from tests.tinymodels import write_checkpoint

AUTO = LoadOptions(device="cpu")


def test_a_cpu_with_the_package_takes_it() -> None:
    assert why_not(AUTO, "cpu", installed=lambda: True) == ""


@pytest.mark.parametrize(
    ("options", "device", "installed", "reason"),
    [
        (AUTO, "cpu", False, "pip install llama-cpp-python"),
        (AUTO, "cuda", True, "there is a GPU"),
        (LoadOptions(dtype="float32"), "cpu", True, "a precision"),
        (LoadOptions(engine="dynamic"), "cpu", True, "another engine"),
    ],
)
def test_why_it_is_not_taken(options: LoadOptions, device: str, installed: bool, reason: str) -> None:
    assert reason in why_not(options, device, installed=lambda: installed)


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
    monkeypatch.setattr(llama, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install llama-cpp-python"):
        llama.LlamaFile(tmp_path / "model.gguf")


def test_the_engine_needs_a_file(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "granite")
    options = LoadOptions(model=str(folder), device="cpu", engine="gguf")
    with pytest.raises(ConfigurationError, match="has no GGUF file here"):
        open_model(tmp_path, 1, options, lambda stage, fraction, detail: None, threading.Event())


def test_another_engine_does_not_run_a_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    options = LoadOptions(model=str(file), device="cpu", engine="dynamic")
    with pytest.raises(ConfigurationError, match="only the engine gguf"):
        open_model(tmp_path, 1, options, lambda stage, fraction, detail: None, threading.Event())
