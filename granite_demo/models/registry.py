"""Resolves the name or path of a model, and compares a row of the catalogue with a config.json."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from granite_demo.errors import ModelError, UnknownModelError
from granite_demo.models.catalogue import MODELS, ModelSpec
from granite_demo.models.config import Mamba, Shape

LABELS = {
    "vocab_size": "vocabulary",
    "heads": "number of attention heads",
    "kv_heads": "number of key/value heads",
    "head_dim": "size of a head",
    "layers": "number of layers",
    "attention_layers": "number of attention layers",
    "experts": "number of experts",
    "experts_per_token": "number of experts per token",
    "expert_size": "size of an expert",
    "shared_size": "size of the shared expert",
    "mamba": "shape of the Mamba-2 layers",
}


def resolve(name: str) -> ModelSpec:
    """Return the row with this name or repository id, or a new one for a checkpoint folder or GGUF file.

    Raises UnknownModelError.
    """
    if name in MODELS:
        return MODELS[name]
    for spec in MODELS.values():
        if spec.repo_id == name:
            return spec
    try:
        folder = Path(name).expanduser().resolve()
        found = (folder / "config.json").is_file() or (folder.suffix == ".gguf" and folder.is_file())
        found = found or any(folder.glob("*.gguf"))
    except (OSError, RuntimeError, ValueError):  # name too long, no such home folder, null character
        found = False
    if found:
        return _folder_spec(folder)
    close = difflib.get_close_matches(name.rpartition("/")[2], MODELS, n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else "To list the models, run: granite-demo models"
    raise UnknownModelError(
        f"There is no model {name!r}: it is not in the catalogue, not a folder with a config.json, and not a GGUF "
        f"file. {hint}"
    )


def _folder_spec(folder: Path) -> ModelSpec:
    try:
        shape = Shape.from_config(json.loads((folder / "config.json").read_bytes()))
    except (OSError, ValueError, RecursionError, ModelError):
        shape = None  # the load raises the error
    return ModelSpec(
        name=folder.name.removesuffix(".gguf"),
        title=folder.name,
        about="A checkpoint on this machine.",
        licence="see the checkpoint",
        family="On this machine",
        shape=shape,
        path=folder,
    )


def differences(spec: ModelSpec, config: Mapping[str, Any]) -> list[str]:
    """Compare ``spec`` with ``config``, a parsed config.json. Return a sentence for each field that differs.

    Fields that are None in ``spec`` are not compared.
    """
    if spec.shape is None:
        return []
    try:
        shape = Shape.from_config(config)
    except ModelError as error:
        return [f"The catalogue cannot be compared with config.json. {error.user_text}"]
    pairs = [(field.name, getattr(spec.shape, field.name), getattr(shape, field.name)) for field in fields(Shape)]
    return [
        f"The {LABELS.get(name, name.replace('_', ' '))} is {_text(claimed)} in the catalogue, {_text(found)} in "
        "config.json."
        for name, claimed, found in pairs
        if claimed is not None and claimed != found
    ]


def _text(value: Any) -> str:
    if isinstance(value, Mamba):
        return f"{value.heads} heads of {value.head_dim} with a state of {value.state_size}"
    return "missing" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
