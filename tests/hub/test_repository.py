"""A repository outside the catalogue is described by its config.json before anything else is downloaded."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from granite_demo.errors import CorruptModelError, UnknownModelError
from granite_demo.hub.repository import Repository, describe
from granite_demo.models import registry
from granite_demo.models.catalogue import MODELS
from tests.fakehub import FakeHub, model_files
from tests.models.test_config import config_of

NAME = "ibm-granite/granite-9-tiny"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A fake hub and an empty cache, as huggingface_hub is configured for."""
    with FakeHub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        yield hub


def described(hub: FakeHub, revision: str | None = None, **config: Any) -> Repository:
    shape = MODELS["granite-4.0-350m"].shape
    assert shape
    content = json.dumps({**config_of(shape), **config}).encode()
    hub.add(NAME, {**model_files(5000), "config.json": content, "modeling.py": b"boom"}, revision or "main")
    spec = registry.resolve(f"{NAME}@{revision}" if revision else NAME)
    return describe(spec, None, lambda *stage: None, threading.Event(), sizes=True)


@pytest.mark.parametrize("revision", [None, "v2"])
def test_the_shape_and_the_size_are_known_before_the_weights_arrive(hub: FakeHub, revision: str | None) -> None:
    found = described(hub, revision)
    assert found.spec.shape == MODELS["granite-4.0-350m"].shape
    assert 5000 < found.file_bytes < 6000
    assert not hub.transfers("model.safetensors")
    assert not hub.transfers("modeling.py")


def test_a_quantization_is_known_before_the_weights_arrive(hub: FakeHub) -> None:
    own = described(hub, quantization_config={"quant_method": "fp8"}).quantization
    assert own
    assert own.label == "FP8"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "granite_speech"}, "granite-9-tiny: This is a model for speech"),
        ({"model_type": "falcon"}, "is of the type 'falcon'. These types can be loaded: gpt_bigcode, granite"),
        ({"quantization_config": {"quant_method": "modelopt"}}, "'modelopt', which cannot be loaded"),
    ],
)
def test_what_cannot_be_loaded_is_not_downloaded(hub: FakeHub, config: dict[str, Any], expected: str) -> None:
    with pytest.raises(CorruptModelError, match=expected):
        described(hub, **config)
    assert not hub.transfers("model.safetensors")


def test_a_repository_that_is_not_there_is_named(hub: FakeHub) -> None:
    with pytest.raises(UnknownModelError, match="There is no model ibm-granite/none"):
        describe(registry.resolve("ibm-granite/none"), None, lambda *stage: None, threading.Event())
