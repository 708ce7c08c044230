"""The stages of opening a model in one call, for tests that need a loaded model and no more."""

from pathlib import Path
from typing import Any

from granite_demo.loading.device import Placement, choose_device
from granite_demo.loading.load import load_model
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.loading.placement import place, place_source
from granite_demo.loading.source import Source
from granite_demo.loading.tensor_parallel import ALONE, Group
from granite_demo.models import registry
from granite_demo.models.catalogue import ModelSpec
from granite_demo.models.config import Shape
from granite_demo.types.load_options import LoadOptions

FLOAT32 = LoadOptions(device="cpu", dtype="float32")


def placed(options: LoadOptions, shape: Shape | None = None, free: int | None = None, processes: int = 1) -> Placement:
    """The placement on the device that the options ask for."""
    return place(options, choose_device(options), shape, free, processes)


def load_checkpoint(
    folder: Path,
    options: LoadOptions = FLOAT32,
    spec: ModelSpec | None = None,
    group: Group = ALONE,
    **arguments: Any,
) -> LoadedModel:
    """The checkpoint in ``folder``, by default in float32 on the CPU. ``arguments`` are those of ``load_model``."""
    source = Source(spec or registry.resolve(str(folder)), folder)
    return load_model(source, place_source(source, options, choose_device(options), group), **arguments)
