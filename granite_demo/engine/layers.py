"""The decoder layers of a model. The only file that reaches into one."""

from collections.abc import Sequence
from typing import Any

import torch


def decoder_layers(model: Any) -> Sequence[torch.nn.Module]:
    """The layers of a decoder-only model of transformers, in order."""
    layers: Sequence[torch.nn.Module] = model.get_decoder().layers
    return layers
