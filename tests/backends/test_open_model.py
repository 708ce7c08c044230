"""Tests for opening a model in special cases. ``test_documented_routes`` has the usual cases."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from granite_demo.backends import open_model as opening
from granite_demo.backends.open_model import open_model
from granite_demo.errors import CorruptModelError, OutOfMemoryError
from granite_demo.hub import download
from granite_demo.loading.cpu_benchmark import Threads, choose_threads
from granite_demo.loading.source import Source
from granite_demo.models import catalogue
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.model_status import REQUESTED
from granite_demo.types.sampling_params import SamplingParams
from tests.fakehub import GGUF, GRANITE, gguf_hub
from tests.tinymodels import write_checkpoint


async def test_ignore_ends_ignores_the_end_token(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "granite")
    options = LoadOptions(model=str(folder), device="cpu", dtype="float32")
    ready = open_model(tmp_path, 0, options, lambda stage, fraction, detail: None, threading.Event(), ignore_ends=True)
    assert ready.loaded.eos_ids == frozenset()
    head = ready.loaded.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, logits: logits.new_zeros(logits.shape))
    answer = [token async for token in ready.engine.generate([5, 6, 7], SamplingParams(max_tokens=4))]
    hook.remove()
    # All logits are equal, so the engine chooses token 0, which is the end token.
    assert [getattr(token, "id", None) for token in answer] == [0, 0, 0, 0]
    ready.engine.close()


@pytest.mark.parametrize("asked", [True, False])
def test_the_option_compile_has_a_reason_if_it_is_not_possible(tmp_path: Path, asked: bool) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "granite")
    options = LoadOptions(model=str(folder), device="cpu", dtype="float32", compile=asked)
    ready = open_model(tmp_path, 0, options, lambda stage, fraction, detail: None, threading.Event())
    ready.engine.close()
    compiled = ready.setup.engine.compiled
    assert (compiled is not None) == asked
    assert not compiled or (not compiled.value and "only the batching engine" in compiled.reason)
    assert ("Compiled" in [name for name, _, _ in ready.facts]) == asked


@pytest.mark.parametrize("wanted", [0, 3])
def test_the_number_of_threads_has_its_reason(tmp_path: Path, wanted: int) -> None:
    before = torch.get_num_threads()
    folder = write_checkpoint(tmp_path / "tiny", "granite")
    options = LoadOptions(model=str(folder), device="cpu", dtype="float32")
    choose_threads()  # measures once in a process
    torch.set_num_threads(choose_threads().count + 1)
    ready = open_model(tmp_path, wanted, options, lambda stage, fraction, detail: None, threading.Event())
    ready.engine.close()
    expected = Threads(3, REQUESTED, requested=True) if wanted else choose_threads()
    assert torch.get_num_threads() == expected.count
    assert ready.loaded.threads == expected
    assert ("Threads", str(expected.count), expected.reason) in ready.facts
    torch.set_num_threads(before)


def test_the_safetensors_replace_a_damaged_gguf_file_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "granite")
    monkeypatch.setattr("granite_demo.loading.source.why_not", lambda options, device: "")
    monkeypatch.setattr(download, "fetch", lambda *_: download.Checkpoint(folder, "a" * 40))
    with gguf_hub(tmp_path / "hub", monkeypatch):
        options = LoadOptions(model=GRANITE, device="cpu")
        ready = open_model(tmp_path, 1, options, lambda stage, fraction, detail: None, threading.Event())
        ready.engine.close()
        with pytest.raises(CorruptModelError, match=GGUF):
            asked = replace(options, engine="gguf")
            open_model(tmp_path, 1, asked, lambda stage, fraction, detail: None, threading.Event())
    source = ready.loaded.source
    assert (source.folder, source.gguf) == (folder, None)
    assert source.gguf_because.startswith(GGUF)
    assert ("GGUF file", "not used", source.gguf_because) in ready.facts


def test_the_next_model_is_chosen_if_the_first_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[frozenset[str]] = []

    def find(*given: Any) -> Source:
        tried.append(given[-1])
        name = "granite-3.3-2b-instruct" if given[-1] else "granite-4.1-3b"
        return Source(catalogue.MODELS[name], tmp_path, chosen_because="a test" if given[1].model == "auto" else "")

    def open_source(source: Source, *given: Any) -> str:
        if source.spec.name == "granite-4.1-3b":
            raise OutOfMemoryError("The weights take 6.8 GB.")
        return source.spec.name

    monkeypatch.setattr(opening, "find_source", find)
    monkeypatch.setattr(opening, "_open_source", open_source)

    def load(model: str) -> object:
        return opening.open_model(tmp_path, 1, LoadOptions(model, device="cpu"), lambda *stage: None, threading.Event())

    assert load("auto") == "granite-3.3-2b-instruct"
    assert tried == [frozenset(), frozenset({"granite-4.1-3b"})]
    with pytest.raises(OutOfMemoryError):
        load("granite-4.1-3b")
