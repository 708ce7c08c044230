"""A fake ``LoadedModel`` for the checks of fused layers."""

from typing import Any

import torch

from granite_demo.loading.device import Placement
from granite_demo.types.load_options import LoadOptions
from tests.loaded import placed


class Loaded:
    """The parts of a ``LoadedModel`` that the checks read."""

    def __init__(self, model: Any, **placement: Any) -> None:
        usual = {"device": "cuda", "dtype": torch.bfloat16, "attention": "sdpa", **placement}
        self.placement = Placement(**{**vars_of(placed(LoadOptions(device="cpu"))), **usual})
        self.model = model


def vars_of(placement: Placement) -> dict[str, Any]:
    return {name: getattr(placement, name) for name in placement.__dataclass_fields__}
