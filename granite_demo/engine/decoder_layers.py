"""The decoder layers of a model, and a stop between them. The only file that reaches into one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def decoder_layers(model: Any) -> Sequence[torch.nn.Module]:
    """The layers of a decoder-only model of transformers, in order."""
    layers: Sequence[torch.nn.Module] = model.get_decoder().layers
    return layers


class LayerChecks:
    """Calls a function before each layer of a model, so that Stop works inside a long chunk."""

    def __init__(self, model: Any) -> None:
        self._check: Callable[[], None] = no_check
        self._hooks = [layer.register_forward_pre_hook(lambda *_: self._check()) for layer in decoder_layers(model)]

    @contextmanager
    def calling(self, check: Callable[[], None]) -> Iterator[None]:
        """Inside the block ``check`` is called; what it raises comes out of the model's forward."""
        self._check = check
        try:
            yield
        finally:
            self._check = no_check

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()


def no_check() -> None:
    """A check that never stops."""
