"""A quantized copy is saved once, and later loads use it."""

from pathlib import Path
from typing import Any

import pytest

from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.loading.quantized_copies import copy_of, save_copy
from granite_demo.models import catalogue, registry
from granite_demo.types.load_options import LoadOptions
from tests.loaded import load_checkpoint
from tests.tinymodels import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "granite", "granite")


def load(folder: Path, cache: Path, **options: Any) -> LoadedModel:
    choice = LoadOptions(device="cpu", dtype="bfloat16", quantization="nf4")
    return load_checkpoint(folder, choice, copies=cache, **options)


def test_a_copy_is_saved_on_request_and_used_the_next_time(folder: Path, tmp_path: Path) -> None:
    spec = registry.resolve(str(folder))
    copy = copy_of(tmp_path, spec, None, "nf4")
    load(folder, tmp_path)
    assert not copy.exists()
    first = load(folder, tmp_path, keep_quantized=True)
    assert (copy / "model.safetensors").is_file()
    again = load(folder, tmp_path)
    assert again.placement.reasons["quantization"] == "a saved copy is already quantized"
    assert again.weight_bytes == first.weight_bytes
    for (name, mine), (_, theirs) in zip(
        first.model.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        assert mine.dtype == theirs.dtype, name
        assert mine.equal(theirs), name


def test_no_layer_uses_the_kernel_for_avx512_bf16(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Simulate a processor with AVX512-BF16. On others, the layers never use the kernel.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    made = load(folder, tmp_path, keep_quantized=True)
    for loaded in (made, load(folder, tmp_path)):
        layers = [module for module in loaded.model.modules() if type(module).__name__ == "Linear4bit"]
        assert layers
        assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_a_checkpoint_that_was_saved_quantized_says_so(folder: Path, tmp_path: Path, quantization: Any) -> None:
    made = load_checkpoint(folder, LoadOptions(device="cpu", quantization=quantization))
    assert str(made.model.dtype) == "torch.bfloat16"
    save_copy(made.model, made.tokenizer, tmp_path / "saved")
    loaded = load_checkpoint(tmp_path / "saved", LoadOptions(device="cpu"))
    assert loaded.placement.quantization == quantization
    assert loaded.placement.reasons["quantization"] == "the checkpoint's own, bitsandbytes"
    assert loaded.weight_bytes == made.weight_bytes


def test_each_model_commit_and_quantization_has_its_own_copy(folder: Path, tmp_path: Path) -> None:
    spec, other = registry.resolve(str(folder)), catalogue.MODELS["granite-3.3-2b-instruct"]
    copies = {
        copy_of(tmp_path, spec, None, "nf4"),
        copy_of(tmp_path, spec, None, "int8"),
        copy_of(tmp_path, other, "a" * 40, "nf4"),
        copy_of(tmp_path, other, "b" * 40, "nf4"),
    }
    assert len(copies) == 4


def test_a_failed_copy_leaves_no_files(tmp_path: Path) -> None:
    class Full:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "half").write_text("")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_copy(Full(), Full(), tmp_path / "quantized" / "one")
    assert [path.name for path in (tmp_path / "quantized").iterdir()] == [".lock"]


def test_a_full_disk_does_not_lose_the_model(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "quantized").write_text("a file where the folder should be")
    assert load(folder, tmp_path, keep_quantized=True).weight_bytes > 0
    assert "could not be saved" in caplog.text
