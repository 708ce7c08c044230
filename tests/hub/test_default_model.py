"""The choice of the model for ``auto``, with made-up caches."""

import json
import struct
from pathlib import Path

import pytest

from granite_demo.hub.default_model import choose_model, last_model, remember_model
from granite_demo.models.devices import DeviceMemory

GB = 10**9


def put(hub_cache: Path, name: str) -> None:
    """Write a complete copy of a model with empty weights, in the format of huggingface_hub."""
    commit = "0" * 40
    repo = hub_cache / f"models--ibm-granite--{name}"
    folder = repo / "snapshots" / commit
    folder.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    for file in ("config.json", "tokenizer.json"):
        (folder / file).write_text("{}")


def put_gguf(hub_cache: Path, name: str) -> None:
    """Write a GGUF file of a model, in the format of huggingface_hub."""
    repo = hub_cache / f"models--ibm-granite--{name}-GGUF"
    folder = repo / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(folder.name)
    with (folder / f"{name}-Q6_K.gguf").open("wb") as file:
        file.truncate(2 * GB)  # a sparse file


def choose(
    tmp_path: Path,
    free: int = 80 * GB,
    on_gpu: bool = True,
    gguf: bool = False,
    without: frozenset[str] = frozenset(),
) -> tuple[str, str]:
    device = "cuda" if on_gpu else "cpu"
    return choose_model(
        tmp_path / "cache", [DeviceMemory(device, device, free)], gguf, tmp_path / "hub", without=without
    )


def test_without_a_granite_model_it_is_the_sample_and_one_is_suggested(tmp_path: Path) -> None:
    name, reason = choose(tmp_path)
    assert name == "sample"
    assert "granite-4.0-350m, a download of 0.7 GB" in reason


def test_the_largest_in_the_cache_that_fits(tmp_path: Path) -> None:
    for name in ("granite-4.0-350m", "granite-3.3-2b-instruct", "granite-3.3-8b-instruct", "granite-3.3-8b-base"):
        put(tmp_path / "hub", name)
    assert choose(tmp_path)[0] == "granite-3.3-8b-instruct"
    assert choose(tmp_path, free=5 * GB)[0] == "granite-3.3-2b-instruct"
    assert choose(tmp_path, free=2 * GB)[0] == "granite-4.0-350m"
    assert choose(tmp_path, on_gpu=False)[0] == "granite-3.3-2b-instruct"
    assert choose(tmp_path, free=GB // 2)[0] == "sample"


def test_a_gguf_file_counts_where_llama_runs_models(tmp_path: Path) -> None:
    put(tmp_path / "hub", "granite-4.0-350m")
    put_gguf(tmp_path / "hub", "granite-3.3-2b-instruct")
    assert choose(tmp_path)[0] == choose(tmp_path, on_gpu=False)[0] == "granite-4.0-350m"
    assert choose(tmp_path, on_gpu=False, gguf=True)[0] == "granite-3.3-2b-instruct"
    assert choose(tmp_path, free=2 * GB, on_gpu=False, gguf=True)[0] == "granite-4.0-350m"
    remember_model(tmp_path / "cache", "granite-3.3-2b-instruct")
    assert choose(tmp_path, on_gpu=False, gguf=True)[1] == "the last model used here"
    assert choose(tmp_path, on_gpu=False)[0] == "granite-4.0-350m"


def test_the_size_of_the_suggestion_is_that_of_its_file(tmp_path: Path) -> None:
    assert "granite-4.0-350m, a download of 0.4 GB" in choose(tmp_path, on_gpu=False, gguf=True)[1]


def test_the_last_one_used_comes_first_if_it_is_still_there(tmp_path: Path) -> None:
    put(tmp_path / "hub", "granite-3.3-2b-instruct")
    remember_model(tmp_path / "cache", "sample")
    assert choose(tmp_path) == ("sample", "the last model used here")
    remember_model(tmp_path / "cache", "granite-3.3-8b-instruct")
    assert choose(tmp_path)[0] == "granite-3.3-2b-instruct"
    remember_model(tmp_path / "cache", "no-such-model")
    assert choose(tmp_path)[0] == "granite-3.3-2b-instruct"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"])
def test_an_unreadable_file_is_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last-model").write_bytes(content)
    assert last_model(tmp_path) is None


def test_without_a_writable_cache_nothing_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    remember_model(tmp_path / "file", "sample")
    assert last_model(tmp_path / "file") is None


def test_a_cpu_gets_no_model_that_only_fits_in_4_bits(tmp_path: Path) -> None:
    for name in ("granite-4.1-3b", "granite-3.3-2b-instruct"):
        put(tmp_path / "hub", name)
    assert choose(tmp_path, free=7 * GB, on_gpu=True)[0] == "granite-4.1-3b"
    assert choose(tmp_path, free=7 * GB, on_gpu=False)[0] == "granite-3.3-2b-instruct"
    assert choose(tmp_path, free=9 * GB, on_gpu=False)[0] == "granite-4.1-3b"


def test_a_second_choice_follows_one_that_did_not_fit(tmp_path: Path) -> None:
    for name in ("granite-4.1-3b", "granite-3.3-2b-instruct"):
        put(tmp_path / "hub", name)
    remember_model(tmp_path / "cache", "granite-4.1-3b")
    assert choose(tmp_path)[0] == "granite-4.1-3b"
    name, reason = choose(tmp_path, without=frozenset({"granite-4.1-3b"}))
    assert name == "granite-3.3-2b-instruct"
    assert reason.endswith("granite-4.1-3b did not fit")
    both = frozenset({"granite-4.1-3b", "granite-3.3-2b-instruct"})
    assert choose(tmp_path, without=both)[0] == "sample"
