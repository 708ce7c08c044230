"""What a folder with a checkpoint is: one sentence for each kind, before torch reads a file."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from granite_demo.errors import ConfigurationError, CorruptModelError
from granite_demo.models import checkpoint
from granite_demo.models.checkpoint import (
    METHODS,
    check_kind,
    check_tensor_names,
    own_quantization,
    read_checkpoint,
    require_packages,
)

CONFIG = {
    "model_type": "granite",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 128,
}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def tensors(**sizes: int) -> bytes:
    """A safetensors file with zeros: bytes by name."""
    at, entries = 0, {}
    for name, size in sizes.items():
        entries[name.replace("__", ".")] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(at)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint, to break."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / WEIGHTS).write_bytes(tensors(model__embed_tokens__weight=100, lm_head__weight=50))
    return folder


def edit(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def shard(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(tensors(a=10))
    names = {f"t{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


def shard_without(name: str) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        shard(folder)
        (folder / name).unlink()

    return broken


def as_adapter(folder: Path, **more: Any) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "ibm-granite/base", **more}))


def put(name: str, data: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(data)


def renamed(old: str, new: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / old).rename(folder / new)


def changed(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, **values)


SCALED = tensors(model__q_proj__weight=9, model__q_proj__weight_scale=1)
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an adapter": (as_adapter, r"an adapter \(LoRA\) of ibm-granite/base, not a model. Merge it"),
    "an activated adapter": (
        lambda folder: as_adapter(folder, alora_invocation_tokens=[1]),
        "activated LoRA adapter of",
    ),
    "pickled": (renamed(WEIGHTS, "pytorch_model.bin"), r"pickle file \(pytorch_model.bin\).* never loaded"),
    "other name": (renamed(WEIGHTS, "granite.safetensors"), "Rename it to model.safetensors"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "has no weights"),
    "pointer": (put(WEIGHTS, POINTER), r"model.safetensors is a git-lfs pointer .* git lfs pull"),
    "pointer of the tokenizer": (put("tokenizer.json", POINTER), r"tokenizer.json is a git-lfs pointer"),
    "cut": (put(WEIGHTS, tensors(a=100)[:-9]), r"model.safetensors has [\d,]+ bytes instead of"),
    "empty": (put(WEIGHTS, b""), "model.safetensors is empty"),
    "a missing shard": (shard_without("model-00002-of-00002.safetensors"), "lacks model-00002-of-00002.safetensors"),
    "no index": (shard_without(INDEX), f"no {INDEX}"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "cut tokenizer": (put("tokenizer.json", b"{"), "tokenizer.json is not valid JSON"),
    "byte order mark": (put("config.json", b"\xef\xbb\xbf{}"), "byte order mark"),
    "template in Latin-1": (put("chat_template.jinja", b"\xe9"), "chat_template.jinja is not text in UTF-8"),
    "images": (changed(model_type="llava_next"), r"a model for images \(llava_next\)"),
    "speech": (changed(model_type="granite_speech"), "a model for speech"),
    "an encoder": (changed(model_type="modernbert"), "an encoder, which writes no text"),
    "time series": (changed(model_type="tinytimemixer"), "a model for time series"),
    "a classifier": (changed(architectures=["GraniteForSequenceClassification"]), "a classifier"),
    "code of its own": (
        put("config.json", b'{"model_type": "granite", "n_embd": 64}'),
        "lacks hidden_size, .*never run",
    ),
    "scales without a config": (put(WEIGHTS, SCALED), "scales are tensors such as model.q_proj.weight_scale"),
    "modelopt": (changed(quantization_config={"quant_method": "modelopt"}), "'modelopt', which cannot be loaded"),
    "modelopt beside": (put("hf_quant_config.json", b"{}"), "'modelopt'"),
    "MLX": (changed(quantization={"bits": 4, "group_size": 64}), "MLX checkpoint"),
    "MLX as transformers names it": (changed(quantization_config={"bits": 4, "group_size": 64}), "MLX checkpoint"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_loaded_is_named(folder: Path, case: str) -> None:
    read_checkpoint(folder)
    damage, expected = REFUSED[case]
    damage(folder)
    with pytest.raises(CorruptModelError, match=expected) as caught:
        read_checkpoint(folder)
    assert len(str(caught.value)) < 400
    assert "emove" not in str(caught.value)


def test_a_model_beside_an_adapter_has_a_note(folder: Path) -> None:
    assert read_checkpoint(folder).notes == ()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(tensors(a=1))
    assert "without that adapter" in read_checkpoint(folder).notes[0]


def test_the_bytes_are_those_of_the_tensors_without_a_tied_head(folder: Path) -> None:
    assert read_checkpoint(folder).weight_bytes == 150
    edit(folder, tie_word_embeddings=True)
    assert read_checkpoint(folder).weight_bytes == 100
    shard(folder)
    assert read_checkpoint(folder).weight_bytes == 10


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4"),
        ({"quant_method": "fp8"}, "FP8"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "compressed-tensors float-quantized"),
        ({"quant_method": "awq", "bits": 4}, "AWQ 4-bit"),
        ({"quant_method": "gptq", "bits": 8}, "GPTQ 8-bit"),
        ({"quant_method": "mxfp4"}, "MXFP4"),
    ],
)
def test_a_quantization_has_its_name(settings: dict[str, Any], label: str) -> None:
    own = own_quantization({"quantization_config": settings})
    assert own
    assert own.label == label


def test_missing_packages_are_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_quantization({"quantization_config": {"quant_method": "gptq", "bits": 4}})
    assert own
    monkeypatch.setattr(checkpoint, "_is_installed", lambda module: module == "optimum")
    with pytest.raises(ConfigurationError, match=r"needs gptqmodel. Run: pip install optimum gptqmodel$"):
        require_packages(own)
    monkeypatch.setattr(checkpoint, "_is_installed", lambda module: True)
    require_packages(own)


def test_every_method_is_one_of_transformers() -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as known

    assert all(method in known or f"{method}_4bit" in known for method in METHODS)


def test_a_model_of_another_architecture_passes() -> None:
    check_kind({"model_type": "gpt_bigcode", "architectures": ["GPTBigCodeForCausalLM"]})
    check_kind({"model_type": "granite5"})


def test_names_of_tensors_are_compared(folder: Path) -> None:
    check_tensor_names(folder, ["a"], [], ["model.rotary_emb.inv_freq", "mtp.layers.0.weight"])
    with pytest.raises(CorruptModelError, match="lacks 2 weights, such as a"):
        check_tensor_names(folder, ["c"], ["b", "a"], ["c"])
    with pytest.raises(CorruptModelError, match="has 1 tensors that the model"):
        check_tensor_names(folder, ["a", "b"], [], ["b"])
    with pytest.raises(CorruptModelError, match="has the prefix module. before"):
        check_tensor_names(folder, ["module.a"], ["a"], ["module.a"])


def test_a_folder_that_is_read_does_not_change(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    read_checkpoint(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in copy.iterdir()
    }
