"""The layers of every kind of Granite model."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from granite_demo.engine.decoder_layers import decoder_layers
from tests.tinymodels import KINDS, write_checkpoint


@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_are_found_in_order(tmp_path: Path, kind: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path, kind))
    layers = decoder_layers(model)
    assert len(layers) == 3
    found = [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
    assert [name.rsplit(".", 1)[1] for name in found] == ["0", "1", "2"]
