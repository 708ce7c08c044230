"""The files that a model is loaded from, and why. These tests do not need llama.cpp."""

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from granite_demo.errors import ConfigurationError, DownloadError, OutOfMemoryError, UnknownModelError
from granite_demo.hub import download, sample
from granite_demo.hub.gguf import FASTER
from granite_demo.loading import source as source_module
from granite_demo.loading.source import Source, find_safetensors, find_source, has_avx2, why_not
from granite_demo.models import catalogue, registry
from granite_demo.models.devices import DeviceMemory
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.model_status import REQUESTED
from tests.fakehub import GGUF, GGUF_FILES, GGUF_REPO, GRANITE, FakeHub, gguf_hub
from tests.tinymodels import write_checkpoint

AUTO = LoadOptions(GRANITE, device="cpu")
MICRO = catalogue.MODELS["granite-4.0-micro"]
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="the wheels for Linux need the system's OpenMP")
NO_LLAMA = source_module.no_llama
FREE = "granite_demo.loading.source.free_memory"
IN_CACHE = "the safetensors files are in the hub cache; the engine gguf is"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp seems to be installed, and 8 GB of memory free."""
    monkeypatch.setattr("granite_demo.loading.source.no_llama", lambda: "")
    monkeypatch.setattr(FREE, lambda device: 8 * 10**9)


@pytest.mark.parametrize(
    ("options", "device", "reason"),
    [
        (AUTO, "cpu", ""),
        (AUTO, "mps", ""),
        (AUTO, "cuda", "there is an NVIDIA GPU"),
        (LoadOptions(dtype="float32"), "cpu", "a precision"),
        (LoadOptions(revision="v1"), "cpu", "a revision"),
        (LoadOptions(engine="dynamic"), "cpu", "another engine"),
    ],
)
def test_why_it_is_not_used(options: LoadOptions, device: str, reason: str) -> None:
    because = why_not(options, device)
    assert reason in because
    assert bool(because) == bool(reason)


@pytest.mark.parametrize(
    ("wheel", "avx2", "openmp", "reason"),
    [
        (None, True, "libgomp.so.1", "has no wheel"),
        (1, False, "libgomp.so.1", "no AVX2"),
        pytest.param(1, True, "no-such-library.so", "apt install libgomp1", marks=only_linux),
        (1, True, "libc.so.6", ""),
    ],
)
def test_a_platform_without_llama(
    wheel: object, avx2: bool, openmp: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "no_llama", NO_LLAMA)
    monkeypatch.setattr(source_module, "find_spec", lambda name: wheel)
    monkeypatch.setattr(source_module, "has_avx2", lambda: avx2)
    monkeypatch.setattr(source_module, "OPENMP", openmp)
    because = why_not(AUTO, "cpu")
    assert reason in because
    assert bool(because) == bool(reason)


@pytest.mark.parametrize(
    ("system", "machine", "text", "expected"),
    [
        ("linux", "x86_64", "processor : 0\nflags\t\t: sse4_2 avx avx2 bmi2\n", True),
        ("linux", "x86_64", "processor : 0\nflags\t\t: sse4_2 avx\n", False),
        ("linux", "x86_64", "", True),
        ("linux", "aarch64", "flags : sse", True),
        ("win32", "x86_64", "flags : sse", True),
    ],
)
def test_avx2(
    system: str, machine: str, text: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    (cpuinfo := tmp_path / "cpuinfo").write_text(text)
    assert has_avx2(cpuinfo) is expected
    cpuinfo.unlink()
    assert has_avx2(cpuinfo)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a model's safetensors and GGUF files, and an empty hub cache."""
    with gguf_hub(tmp_path / "hub", monkeypatch) as server:
        yield server


def find(tmp_path: Path, options: LoadOptions = AUTO, device: str = "cpu", **more: Any) -> Source:
    return find_source(tmp_path, options, device, lambda *_: None, threading.Event(), **more)


def test_a_cpu_downloads_the_gguf_file_of_a_model(server: FakeHub, tmp_path: Path) -> None:
    source = find(tmp_path)
    assert source.spec.name == GRANITE
    assert source.gguf_because.startswith("Q8_0 is the most exact of Q8_0 (0 MB), Q6_K (0 MB) and Q4_K_M (0 MB)")
    assert source.gguf_because.endswith(FASTER)
    assert source.gguf
    assert source.gguf.name == GGUF
    assert (source.folder / "tokenizer.json").is_file()
    assert not server.transfers("model.safetensors")
    again = find(tmp_path)
    assert again == replace(source, gguf_because=again.gguf_because)
    assert again.gguf_because.startswith("it is in the hub cache: Q8_0 (0 MB) fits into 8.0 GB of free memory; ")
    assert len(server.transfers(GGUF)) == 1


def test_what_is_in_the_cache_needs_no_hub(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(GGUF_REPO, {name: data for name, data in GGUF_FILES.items() if "Q4_K_M" in name})
    source = find(tmp_path)
    server.add(GGUF_REPO, GGUF_FILES)
    server.requests.clear()
    monkeypatch.setattr("granite_demo.hub.download.cached", lambda *_: pytest.fail("the GGUF file comes first"))
    assert find(tmp_path).gguf == source.gguf
    assert source.gguf
    assert source.gguf.name == f"{GRANITE}-Q4_K_M.gguf"
    assert not server.requests


def test_nothing_is_downloaded_if_nothing_fits(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FREE, lambda device: 10**6)
    with pytest.raises(OutOfMemoryError, match="Choose a smaller model"):
        find(tmp_path)
    assert not any(server.transfers(name) for name in GGUF_FILES)


def test_a_request_for_the_engine_downloads_the_file(server: FakeHub, tmp_path: Path) -> None:
    asked = replace(AUTO, engine="gguf")
    source = find(tmp_path, asked, "cuda")
    assert source.gguf
    assert source.gguf_because.startswith(f"{REQUESTED}; Q8_0 is the most exact")
    with pytest.raises(UnknownModelError, match="granite-4.0-micro-GGUF"):
        find(tmp_path, replace(asked, model="granite-4.0-micro"))


@pytest.mark.parametrize("reason", [IN_CACHE, f"the hub has none in {GGUF_REPO}", "the download failed: "])
def test_without_a_gguf_file_it_is_the_safetensors_with_a_reason(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    checkpoint = download.Checkpoint(tmp_path, "a" * 40)
    monkeypatch.setattr(download, "fetch", lambda *_: checkpoint)
    if reason == IN_CACHE:
        monkeypatch.setattr(download, "cached", lambda *_: checkpoint)
    elif "none" in reason:
        del server.repos[GGUF_REPO]
    else:
        server.refused = (503, None)
    source = find(tmp_path)
    assert (source.folder, source.commit, source.gguf) == (tmp_path, "a" * 40, None)
    assert reason in source.gguf_because
    assert not server.transfers(GGUF)


def test_a_gpu_gets_the_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "fetch", lambda *_: download.Checkpoint(tmp_path, "a" * 40))
    assert find(tmp_path, device="cuda") == Source(
        registry.resolve(GRANITE), tmp_path, "a" * 40, gguf_because="there is an NVIDIA GPU"
    )


def test_a_gguf_file_is_refused_without_llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "no_llama", lambda: "a test")
    (file := tmp_path / "model.gguf").touch()
    with pytest.raises(ConfigurationError, match=r"model\.gguf cannot run here: a test\."):
        find(tmp_path, LoadOptions(str(file), device="cpu"))
    with pytest.raises(ConfigurationError, match="cannot run as a GGUF file here: a test"):
        find(tmp_path, replace(AUTO, engine="gguf"))


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
        source = find(tmp_path, replace(options, engine=engine))
        assert (source.gguf, source.gguf_because) == (file, "the model is a GGUF file")
    assert find(tmp_path, options, "cuda").gguf == file
    with pytest.raises(ConfigurationError, match="only the engine gguf can run"):
        find(tmp_path, replace(options, engine="dynamic"))


def test_the_default_model_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = write_checkpoint(tmp_path / "tiny", "granite"), list[bool]()

    def choose(cache_dir: Path, devices: list[DeviceMemory], gguf: bool, without: frozenset[str]) -> tuple[str, str]:
        asked.extend((devices[0].device != "cpu", gguf))
        return str(folder), "a test"

    monkeypatch.setattr("granite_demo.hub.default_model.choose_model", choose)
    source = find(tmp_path, LoadOptions(device="cpu", model="auto"))
    assert (source.folder, source.chosen_because, asked) == (folder, "a test", [False, True])


WITHOUT_TORCH = "which are not installed. Run: pip install -r requirements.txt"


@pytest.mark.parametrize(
    ("options", "subject"),
    [
        (replace(AUTO, engine="dynamic"), "The engine dynamic"),
        (replace(AUTO, quantization="nf4"), "The quantization nf4"),
        (replace(AUTO, dtype="float32"), "The dtype float32"),
        (replace(AUTO, attention="sdpa"), "The attention sdpa"),
        (replace(AUTO, revision="v1"), "The revision v1"),
        (
            replace(AUTO, model="granite-4.0-micro"),
            f"{MICRO.title} in safetensors files",
        ),
    ],
)
@pytest.mark.usefixtures("without_torch", "server")
def test_without_torch_the_error_names_what_needs_it(options: LoadOptions, subject: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        find(tmp_path, options)
    assert str(caught.value) == f"{subject} needs torch and transformers, {WITHOUT_TORCH}"


@pytest.mark.usefixtures("without_torch")
def test_without_torch_the_gguf_file_replaces_cached_safetensors(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "cached", lambda *_: pytest.fail("safetensors are of no use"))
    assert find(tmp_path).gguf
    server.refused = (503, None)
    with pytest.raises(DownloadError, match="answered 503"):
        find(tmp_path / "other", replace(AUTO, model="granite-4.0-micro"))


@pytest.mark.usefixtures("without_torch")
def test_without_torch_and_llama_the_error_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "no_llama", lambda: "llama.cpp is missing: a test")
    with pytest.raises(ConfigurationError, match="^Llama.cpp is missing: a test. Granite .* needs torch"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dtype": "bfloat16"}, "dtype"),
        ({"quantization": "nf4", "attention": "eager"}, "quantization and attention"),
        ({"revision": "main"}, "revision"),
    ],
)
def test_options_that_a_gguf_file_cannot_honour_are_refused_by_name(
    tmp_path: Path, changes: dict[str, str], named: str
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert find(tmp_path, LoadOptions(device="cpu", model=str(file))).gguf == file
    with pytest.raises(ConfigurationError, match=rf"model.gguf is a GGUF file, .* Leave out {named}, or use"):
        find(tmp_path, LoadOptions(device="cpu", model=str(file), **changes))  # type: ignore[arg-type]
