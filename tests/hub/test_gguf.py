"""Finds and downloads the GGUF file of a model."""

import threading
from pathlib import Path

import pytest

from granite_demo.errors import ConfigurationError, LoadCancelledError, OutOfMemoryError, UnknownModelError
from granite_demo.hub import download
from granite_demo.hub import gguf as hub_gguf
from granite_demo.hub.gguf import QuantizedFile, cached_file, choose, file_in, is_cached, quantized_files
from granite_demo.models import catalogue, registry
from tests.fakehub import GGUF, GGUF_FILES, GGUF_REPO, GRANITE, Request, gguf_hub

GB = 10**9
MICRO = registry.resolve("granite-4.0-micro")
FILES = [
    QuantizedFile(quantization, (f"granite-4.0-micro-{quantization}.gguf",), size)
    for quantization, size in (("Q8_0", 3_600_000_000), ("Q6_K", 2_800_000_000), ("Q4_K_M", 2_100_000_000))
]


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


def test_the_shards_of_one_model_are_one_file(tmp_path: Path) -> None:
    shards = [tmp_path / f"granite-Q8_0-{number:05d}-of-00002.gguf" for number in (1, 2)]
    for shard in shards:
        shard.touch()
    assert file_in(tmp_path) == shards[0]
    (tmp_path / "granite-Q6_K-00001-of-00002.gguf").touch()
    with pytest.raises(ConfigurationError, match="There are 2 GGUF files"):
        file_in(tmp_path)


def test_the_files_of_a_listing() -> None:
    sizes = {
        "granite-Q4_K_M.gguf": 4,
        "granite-Q8_0-00002-of-00002.gguf": 5,
        "granite-Q8_0-00001-of-00002.gguf": 3,
        "granite-Q6_K-00001-of-00002.gguf": 6,
        "granite-Q5_K_M.gguf": 5,
        "granite-f16.gguf": 16,
        "mmproj-granite-Q8_0.gguf": 1,
        "README.md": 1,
    }
    shards = ("granite-Q8_0-00001-of-00002.gguf", "granite-Q8_0-00002-of-00002.gguf")
    expected = [QuantizedFile("Q8_0", shards, 8), QuantizedFile("Q4_K_M", ("granite-Q4_K_M.gguf",), 4)]
    assert quantized_files(sizes) == expected


@pytest.mark.parametrize(
    ("free", "quantization", "reason"),
    [
        (16.0, "Q8_0", "Q8_0 (3.6 GB), Q6_K (2.8 GB) and Q4_K_M (2.1 GB) that fits into 16.0 GB of free memory"),
        (4.6, "Q8_0", "the most exact"),
        (4.3, "Q6_K", "the most exact"),
        (3.2, "Q4_K_M", "the most exact"),
        (2.4, "Q4_K_M", "the smallest of Q8_0 (3.6 GB), Q6_K (2.8 GB) and Q4_K_M (2.1 GB), and tight in 2.4 GB"),
    ],
)
def test_the_most_exact_that_fits(free: float, quantization: str, reason: str) -> None:
    file, because = choose(MICRO, FILES, int(free * GB))
    assert file.quantization == quantization
    assert because.startswith(f"{quantization} is ")
    assert reason in because


def test_none_that_fits_is_an_error_before_the_download() -> None:
    with pytest.raises(OutOfMemoryError, match=r"Q4_K_M \(2.1 GB\), Q4_K_M needs 2.2 GB with its cache"):
        choose(MICRO, FILES, 2 * GB)


def fetch(told: list[str], free: int = 8 * GB) -> hub_gguf.Found:
    def report(stage: str, fraction: float | None, detail: str) -> None:
        told.append(detail)

    return hub_gguf.fetch(registry.resolve(GRANITE), free, report, threading.Event())


def test_one_file_and_the_tokenizer_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, told = registry.resolve(GRANITE), list[str]()
    with gguf_hub(tmp_path / "hub", monkeypatch) as server:
        server.hook = lambda request: told.append(request.path)
        assert cached_file(spec, GB) is None
        assert not is_cached(spec)
        found = fetch(told)
    assert found.path.name == GGUF
    assert found.path.read_bytes() == GGUF_FILES[GGUF]
    cached = cached_file(spec, 8 * GB)
    assert cached
    assert (cached.path, cached.reason.partition(":")[0]) == (found.path, "it is in the hub cache")
    assert cached_file(spec, 1000) is None
    assert is_cached(spec)
    assert cached_file(catalogue.SAMPLE, GB) is None
    folder = hub_gguf.tokenizer_folder(spec)
    assert folder
    assert [path.name for path in folder.iterdir()] == ["tokenizer.json"]
    assert not server.transfers("model.safetensors")
    for name in GGUF_FILES:
        assert len(server.transfers(name)) == (name == GGUF)
    assert download.cached(spec.repo_id or "") is None
    assert told.index(found.reason) < min(index for index, text in enumerate(told) if text.endswith(GGUF))
    assert any(" of " in detail and "MB" in detail and found.reason in detail for detail in told)


def test_a_repository_without_the_three_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gguf_hub(tmp_path / "hub", monkeypatch) as server:
        server.add(GGUF_REPO, {f"{GRANITE}-f16.gguf": b"GGUF"})
        with pytest.raises(UnknownModelError, match="no GGUF file of Q8_0, Q6_K and Q4_K_M"):
            fetch([])


def test_a_cancelled_listing_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = threading.Event()
    with gguf_hub(tmp_path / "hub", monkeypatch) as server:

        def never_answer(request: Request) -> None:
            cancelled.set()
            server.closing.wait(5)

        server.hook = never_answer
        with pytest.raises(LoadCancelledError):
            download.list_sizes(GGUF_REPO, ("*.gguf",), lambda *_: None, cancelled)
