"""What a repository on the hub holds, from its config.json and the list of its files, before anything is downloaded."""

import threading
from dataclasses import dataclass, replace

from granite_demo.errors import CorruptModelError, ModelError
from granite_demo.hub import download
from granite_demo.models.catalogue import ModelSpec
from granite_demo.models.checkpoint import OwnQuantization, check_kind, own_quantization
from granite_demo.models.config import DENSE_TYPES, MOE_TYPES, Shape, is_planned, read_config
from granite_demo.types.load_options import Report

LOADED_TYPES = DENSE_TYPES | MOE_TYPES | {"gpt_bigcode", "granite_swa", "granitemoe_swa"}
"""The model types of IBM's repositories that are downloaded: classes of transformers that continue text."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A model on the hub, as its files describe it."""

    spec: ModelSpec
    """With the shape in config.json, if the planner knows the architecture."""
    quantization: OwnQuantization | None
    file_bytes: int
    """The bytes of its safetensors files; 0 if they are in the cache and nothing was listed."""


def describe(
    spec: ModelSpec, revision: str | None, report: Report, cancelled: threading.Event, *, sizes: bool = False
) -> Repository:
    """Read config.json of the repository of ``spec``, and with ``sizes`` the list of its files. Downloads no weights.

    Raises CorruptModelError for a model that cannot be loaded, and as ``download.fetch``.
    """
    assert spec.repo_id
    revision = revision or spec.revision
    copy = download.cached(spec.repo_id, revision)
    folder = copy.folder if copy else download.fetch_some(spec.repo_id, ("config.json",), report, cancelled, revision)
    config = read_config(folder)
    try:
        check_kind(config)
        own = own_quantization(config)
    except ModelError as error:
        raise CorruptModelError(f"{spec.repo_id}: {error}") from None
    kind = config.get("model_type")
    if kind not in LOADED_TYPES:
        known = ", ".join(sorted(LOADED_TYPES))
        raise CorruptModelError(f"{spec.repo_id} is of the type {kind!r:.60}. These types can be loaded: {known}.")
    size = 0
    if sizes:
        size = sum(download.list_sizes(spec.repo_id, ("*.safetensors",), report, cancelled, revision).values())
    shape = spec.shape or (Shape.from_config(config) if is_planned(config) else None)
    return Repository(replace(spec, shape=shape), own, size)
