"""The models by name, one row each. Facts about a model live here and nowhere else."""

from dataclasses import dataclass
from pathlib import Path

from granite_demo.errors import UnknownModelError


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: where it comes from and what to tell the user about it."""

    name: str
    title: str
    about: str
    licence: str
    path: Path | None = None
    """The checkpoint's folder, for a model named by its path."""


SAMPLE = ModelSpec(
    name="sample",
    title="SmolLM2 135M sample (not an IBM model)",
    about=(
        "The weights of SmolLM2-135M-Instruct in the Granite architecture. It shows the page at work on any "
        "machine; it is not one of IBM's models, and it knows little."
    ),
    licence="Apache-2.0",
)

MODELS: dict[str, ModelSpec] = {SAMPLE.name: SAMPLE}


def resolve(name: str) -> ModelSpec:
    """The row for ``name``, or a new one for a checkpoint folder. Raises UnknownModelError."""
    if name in MODELS:
        return MODELS[name]
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return ModelSpec(
            name=folder.name,
            title=folder.name,
            about="A checkpoint from this machine.",
            licence="see the checkpoint",
            path=folder.resolve(),
        )
    raise UnknownModelError(
        f"There is no model {name!r}: it is neither in the registry ({', '.join(MODELS)}) "
        "nor a folder with a config.json."
    )
