"""Choices with their reasons, and loading from a folder."""

import shutil
from pathlib import Path

import pytest
import torch

from granite_demo import registry
from granite_demo.errors import ConfigurationError, CorruptModelError
from granite_demo.loading import LoadedModel, load_model
from granite_demo.placement import place
from granite_demo.types import LoadOptions

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@no_gpu
def test_every_automatic_choice_has_a_reason() -> None:
    facts = place(LoadOptions()).facts
    assert [name for name, _, _ in facts] == ["Device", "Precision", "Quantization", "Attention"]
    assert all(value and reason for _, value, reason in facts)
    assert facts[0][1] == "cpu"
    assert "measured here" in facts[1][2]


def test_what_is_asked_for_is_taken() -> None:
    placement = place(LoadOptions(device="cpu", dtype="bfloat16"))
    assert (placement.device, placement.dtype) == ("cpu", torch.bfloat16)
    assert placement.reasons["device"] == placement.reasons["dtype"] == "asked for"


@no_gpu
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cuda was asked for, but torch finds only: cpu"):
        place(LoadOptions(device="cuda"))


def test_the_sample_is_a_granite_with_end_tokens_and_a_context(sample: LoadedModel) -> None:
    assert type(sample.model).__name__ == "GraniteForCausalLM"
    assert sample.context_length == 8192
    assert sample.tokenizer.eos_token_id in sample.eos_ids
    assert sample.model.dtype == torch.float32


@pytest.mark.parametrize("broken", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_broken_file_is_a_clear_error(sample_path: Path, tmp_path: Path, broken: str) -> None:
    for file in sample_path.iterdir():
        if file.name != broken:
            (tmp_path / file.name).symlink_to(file)
    whole = (sample_path / broken).read_bytes()
    (tmp_path / broken).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptModelError, match="Remove the folder"):
        load_model(tmp_path, registry.SAMPLE, LoadOptions(device="cpu", dtype="float32"))


def test_pickled_weights_are_not_loaded(sample_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(sample_path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    canary = tmp_path / "canary"
    torch.save({"evil": _Touch(str(canary))}, folder / "pytorch_model.bin")
    with pytest.raises(CorruptModelError):
        load_model(folder, registry.SAMPLE, LoadOptions(device="cpu", dtype="float32"))
    assert not canary.exists()


class _Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")
