"""Tests for hostile checkpoints: pickles, code in the repository, and kernels from the hub."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from granite_demo.errors import CorruptModelError
from tests.loaded import load_checkpoint
from tests.tinymodels import write_checkpoint

CODE = """
from pathlib import Path
Path({canary!r}).touch()
from transformers import GraniteConfig as EvilConfig, GraniteForCausalLM as EvilModel
from transformers import PreTrainedTokenizerFast as EvilTokenizer
"""
MODEL = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
TOKENIZER = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "granite")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Yield a checkpoint that a test can change. The network is blocked."""

    def refuse(*values: Any) -> None:
        raise AssertionError("somebody is asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def load(folder: Path) -> Any:
    return load_checkpoint(folder)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **changes}))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_t03_a_pickle_is_never_opened(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"evil": Evil(tmp_path / "canary")}, folder / name)
    with pytest.raises(CorruptModelError):
        load(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("model_type", ["granite", "evil"])
def test_t03_code_in_a_repository_is_never_run(folder: Path, tmp_path: Path, model_type: str) -> None:
    (folder / "evil.py").write_text(CODE.format(canary=str(tmp_path / "canary")))
    edit(folder / "config.json", auto_map=MODEL, model_type=model_type, architectures=["EvilModel"])
    edit(folder / "tokenizer_config.json", auto_map=TOKENIZER, tokenizer_class="EvilTokenizer")
    if model_type == "granite":  # transformers has this model, so it needs no code
        assert type(load(folder).model).__module__ == "transformers.models.granite.modeling_granite"
    else:
        with pytest.raises(CorruptModelError):
            load(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["_attn_implementation_internal", "_attn_implementation", "_experts_implementation"])
@pytest.mark.parametrize("inside", [False, True])
def test_t03_a_config_cannot_select_a_kernel(folder: Path, name: str, inside: bool) -> None:
    wanted: dict[str, Any] = {name: "evil/kernels"}
    edit(folder / "config.json", **({"text_config": wanted} if inside else wanted))
    with pytest.raises(CorruptModelError, match=r"names code to run: 'evil/kernels'\. Choose another model"):
        load(folder)


def test_t03_the_attention_is_that_of_the_placement(folder: Path) -> None:
    edit(folder / "config.json", _attn_implementation_internal="eager")
    loaded = load(folder)
    assert loaded.model.config._attn_implementation == loaded.placement.attention == "sdpa"
