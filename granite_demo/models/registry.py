"""Resolves the name or path of a model, and compares a row of the catalogue with a config.json."""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from granite_demo.errors import ModelError, UnknownModelError
from granite_demo.models.catalogue import MODELS, ModelSpec
from granite_demo.models.checkpoint import check_not_adapter
from granite_demo.models.config import Mamba, Shape

IBM_REPOSITORY = re.compile(r"ibm-granite/(\w[\w.-]{0,94}\w)", re.ASCII | re.IGNORECASE)
FOREIGN_REPOSITORY = re.compile(r"\w[\w.-]{0,94}/\w[\w.-]{0,94}", re.ASCII)
HUB_ADDRESS = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)(?:/(?:tree|blob)/([^/?#]+).*)?/?"
)
"""The page of a repository on the hub, with a revision in some addresses."""

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
    """Return the row with this name or repository, or a new one for files here or another of IBM's repositories.

    A repository can have a revision: ``ibm-granite/NAME@REVISION``. Raises UnknownModelError, and CorruptModelError for
    a folder with an adapter.
    """
    plain = _plain(name)
    if not plain:
        raise UnknownModelError("No model is named. To list the models, run: granite-demo models")
    whole, _, revision = plain.partition("@")
    row = _row(whole)
    if row and (not revision or row.repo_id):
        return replace(row, revision=revision) if revision else row
    if path := _local_files(plain):
        return _folder_spec(path)
    if match := IBM_REPOSITORY.fullmatch(whole):
        return _repository_spec(match[1], revision or None)
    close = difflib.get_close_matches(whole.rpartition("/")[2].lower(), MODELS, n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else "To list the models, run: granite-demo models"
    if FOREIGN_REPOSITORY.fullmatch(whole):
        hint = f"To use that repository, run: hf download {whole} --local-dir FOLDER, and give the folder. {hint}"
    raise UnknownModelError(
        f"There is no model {name!r:.300}: it is not in the catalogue, not a folder with a config.json, not a GGUF "
        f"file, and not a repository ibm-granite/NAME. {hint}"
    )


def _plain(name: str) -> str:
    """Return ``name`` without what people copy with it: quotes, the scheme of a file, the address of the hub."""
    plain = name.strip().strip("\"'").strip()
    if plain.startswith("file://"):
        return unquote(plain.removeprefix("file://"))
    if match := HUB_ADDRESS.fullmatch(plain):
        return match[1] + (f"@{match[2]}" if match[2] and match[2] != "main" else "")
    return plain


def _row(name: str) -> ModelSpec | None:
    lower = name.lower().removesuffix("-gguf") if name not in MODELS else name
    return next((spec for spec in MODELS.values() if lower in (spec.name, (spec.repo_id or "").lower())), None)


def _local_files(name: str) -> Path | None:
    """Return the checkpoint folder or GGUF file of this path, or None if it is no path.

    Raises UnknownModelError for files that are no model, with the path that would work.
    """
    try:
        path = Path(name).expanduser().resolve()
        if path.is_file():
            return _of_file(path)
        if path.is_dir():
            return _of_folder(path)
    except (OSError, RuntimeError, ValueError):  # name too long, no such home folder, null character
        return None
    if name.startswith(("/", "./", "../", "~", "\\")):
        raise UnknownModelError(f"There is no file or folder {name!r:.300}. Check the path.")
    return None


def _of_file(path: Path) -> Path:
    if path.suffix == ".gguf":
        return path
    if (path.parent / "config.json").is_file():
        return path.parent
    raise UnknownModelError(
        f"{path} is neither a GGUF file nor in a folder with a config.json. Give the path of a model."
    )


def _of_folder(path: Path) -> Path | None:
    if (path / "config.json").is_file() or any(file.is_file() for file in path.glob("*.gguf")):
        return path
    check_not_adapter(path)
    if snapshots := sorted(folder for folder in (path / "snapshots").glob("*") if folder.is_dir()):
        main = path / "refs" / "main"
        named = path / "snapshots" / main.read_text(encoding="utf-8").strip() if main.is_file() else snapshots[0]
        if named in snapshots and (main.is_file() or len(snapshots) == 1):
            return _of_folder(named)
        raise UnknownModelError(f"{path} has several versions of a model in the hub cache. Name one: {snapshots[0]}")
    inside = sorted(file.parent for file in path.glob("*/config.json"))
    if inside:
        raise UnknownModelError(f"{path} holds {len(inside)} checkpoints and is none itself. Name one: {inside[-1]}")
    what = "is empty" if not any(path.iterdir()) else "has neither a config.json nor a GGUF file"
    raise UnknownModelError(f"The folder {path} {what}, so it is no model. Give the folder of a checkpoint.")


def _repository_spec(name: str, revision: str | None) -> ModelSpec:
    base = re.sub(r"-gguf$", "", name, flags=re.IGNORECASE)
    return ModelSpec(
        name=f"ibm-granite/{base}",
        title=base,
        about="A repository of IBM Granite on the hub that is not in the catalogue.",
        licence="see the repository",
        family="On the hub",
        repo_id=f"ibm-granite/{base}",
        revision=revision,
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
