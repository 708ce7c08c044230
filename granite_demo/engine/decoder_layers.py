"""Access to the decoder layers of a model, and checks between them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def decoder_layers(model: Any) -> Sequence[torch.nn.Module]:
    """Return the layers of a decoder-only model of transformers, in order."""
    decoder = model.get_decoder()
    # GPT-2 and the models of its time, such as Granite's code models, call them h.
    layers: Sequence[torch.nn.Module] = decoder.layers if hasattr(decoder, "layers") else getattr(decoder, "h", ())
    return layers


class LayerChecks:
    """Calls a function before each layer of a model, so that a long chunk can be cancelled."""

    def __init__(self, model: Any) -> None:
        self._check: Callable[[], None] = no_check
        self._hooks = [layer.register_forward_pre_hook(lambda *_: self._check()) for layer in decoder_layers(model)]

    @contextmanager
    def calling(self, check: Callable[[], None]) -> Iterator[None]:
        """Call ``check`` before each layer inside the block. Its exceptions pass through the forward of the model."""
        self._check = check
        try:
            yield
        finally:
            self._check = no_check

    def remove(self) -> None:
        """Remove the hooks from the model."""
        for hook in self._hooks:
            hook.remove()


def no_check() -> None:
    """A check that never raises."""
