"""The catalogue of models, one row for each. Facts about a model are in this module only.

The numbers are from IBM's published config.json files, disclosures and model cards. ``ModelSpec.unverified`` names the
fields that none of these confirms.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from granite_demo.models.config import Mamba, Shape
from granite_demo.types.sampling_params import SamplingParams

ChatFormat = Literal["granite-3.1", "granite-3.2", "granite-3.3", "granite-4.0", "granite-4.2", "chatml"]
"""The generation of chat template: how it writes turns, tools, documents and reasoning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model: its source, its shape, and the texts that describe it to the user."""

    name: str
    title: str
    about: str
    licence: str
    family: str = ""
    repo_id: str | None = None
    chat_format: ChatFormat | None = None
    instruct: bool = True
    """Whether the model is tuned for chat. A base model only continues text."""
    shape: Shape | None = None
    sampling: SamplingParams = SamplingParams()
    """The sampling parameters of the makers' examples; greedy if they name none."""
    unverified: frozenset[str] = frozenset()
    """Fields of ``shape`` that no published file of this model confirms. Its config.json decides."""
    path: Path | None = None
    """The checkpoint folder or GGUF file of a model that is given by its path."""
    revision: str | None = None
    """The branch, tag or commit in a name such as ibm-granite/NAME@REVISION."""

    @property
    def gguf_repo(self) -> str | None:
        """The hub repository with the GGUF files, which are named like granite-4.0-micro-Q4_K_M.gguf.

        The name follows IBM's convention for 3.3 and 4.0. It is not verified that every model has such a repository.
        """
        return f"{self.repo_id}-GGUF" if self.repo_id else None

    @property
    def context_length(self) -> int | None:
        """The context length in tokens, prompt and answer together. None: unknown."""
        return self.shape.context_length if self.shape else None


SAMPLE = ModelSpec(
    name="sample",
    title="SmolLM2 135M sample (not an IBM model)",
    family="Sample",
    about=(
        "The weights of SmolLM2-135M-Instruct in the Granite architecture. It shows how the page works on any "
        "machine. It is not one of IBM's models, and it knows little."
    ),
    licence="Apache-2.0",
    chat_format="chatml",
    shape=Shape(
        model_type="granite",
        context_length=8192,
        vocab_size=49152,
        hidden_size=576,
        layers=30,
        attention_layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        intermediate_size=1536,
        embedding_multiplier=1.0,
        attention_multiplier=0.125,
        residual_multiplier=1.0,
        logits_scaling=1.0,
    ),
    sampling=SamplingParams(temperature=0.2, top_p=0.9),
)


def _granite(
    hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, mlp: int, *, hybrid: bool = False
) -> Shape:
    """Return a shape with the multipliers that all verified rows have. The residual multiplier is for 40 layers."""
    return Shape(
        model_type="granitemoehybrid" if hybrid else "granite",
        context_length=131072,
        vocab_size=100352,
        hidden_size=hidden,
        layers=layers,
        attention_layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=mlp,
        embedding_multiplier=12.0,
        attention_multiplier=1 / head_dim,
        residual_multiplier=0.22,
        logits_scaling=hidden / 256,
    )


@dataclass(frozen=True, slots=True)
class _Size:
    """One size of a model family, from which the rows are made."""

    name: str
    shape: Shape
    parameters: str
    unverified: frozenset[str] = frozenset()


_2B = _Size("2b", _granite(2048, 40, 32, 8, 64, 8192), "2.5 billion")
_3B = _Size("3b", _granite(2560, 40, 40, 8, 64, 8192), "3.4 billion")
_8B = _Size("8b", _granite(4096, 40, 32, 8, 128, 12800), "8.2 billion")
_8B_NEW = replace(_8B, parameters="8.4 billion")
_30B = _Size(
    "30b",
    replace(_granite(4096, 64, 32, 8, 128, 32768), residual_multiplier=0.175),
    "28.9 billion",
    frozenset({"attention_multiplier", "residual_multiplier", "logits_scaling"}),
)
_SHORT = 32768
_MIXER = frozenset({"attention_layers", "mamba"})
_SIZES_40 = (
    _Size(
        "350m",
        replace(_granite(1024, 28, 16, 4, 64, 2048, hybrid=True), context_length=_SHORT, residual_multiplier=0.263),
        "350 million",
        frozenset({"model_type"}),
    ),
    _Size(
        "h-350m",
        replace(
            _granite(768, 32, 12, 4, 64, 2048, hybrid=True),
            attention_layers=4,
            mamba=Mamba(heads=48, head_dim=32, state_size=128),
            context_length=_SHORT,
            residual_multiplier=0.246,
        ),
        "340 million",
        _MIXER,
    ),
    _Size("1b", _granite(2048, 40, 16, 4, 128, 4096, hybrid=True), "1.6 billion", frozenset({"model_type"})),
    _Size(
        "h-1b",
        replace(
            _granite(1536, 40, 12, 4, 128, 4096, hybrid=True),
            attention_layers=4,
            mamba=Mamba(heads=48, head_dim=64, state_size=128),
        ),
        "1.5 billion",
        _MIXER,
    ),
    _Size("micro", _granite(2560, 40, 40, 8, 64, 8192, hybrid=True), "3.4 billion"),
    _Size(
        "h-micro",
        replace(
            _granite(2048, 40, 32, 8, 64, 8192, hybrid=True),
            attention_layers=4,
            mamba=Mamba(heads=64, head_dim=64, state_size=128),
        ),
        "3.2 billion",
        frozenset({"mamba"}),
    ),
    _Size(
        "h-tiny",
        replace(
            _granite(1536, 40, 12, 4, 128, 0, hybrid=True),
            attention_layers=4,
            mamba=Mamba(heads=48, head_dim=64, state_size=128),
            experts=64,
            experts_per_token=6,
            expert_size=512,
            shared_size=1024,
        ),
        "7 billion",
        _MIXER,
    ),
    _Size(
        "h-small",
        replace(
            _granite(4096, 40, 32, 8, 128, 0, hybrid=True),
            attention_layers=4,
            mamba=Mamba(heads=128, head_dim=64, state_size=128),
            experts=72,
            experts_per_token=10,
            expert_size=768,
            shared_size=1536,
        ),
        "32 billion",
        _MIXER
        | {"hidden_size", "heads", "kv_heads", "head_dim", "attention_multiplier", "logits_scaling"}
        | {"experts", "experts_per_token", "expert_size", "shared_size"},
    ),
)

_CHAT = "tuned for chat"
_OPTIONAL_REASONING = "tuned for chat, with an optional thinking mode"
_REASONING_FIRST = "tuned for chat; it thinks before it answers, unless thinking is off"
_SAMPLING_42 = SamplingParams(temperature=1.0, top_p=0.95, max_tokens=8192)
"""IBM's examples allow 8,192 new tokens with full reasoning, 4,096 with low effort and 2,048 without reasoning."""


def _about(size: _Size, purpose: str) -> str:
    shape = size.shape
    kind = "dense transformer"
    if shape.mamba:
        kind = f"hybrid of {shape.attention_layers} attention and {shape.mamba_layers} Mamba-2 layers"
    experts = f", {shape.experts_per_token} of {shape.experts} experts active for each token" if shape.experts else ""
    return f"A {kind} with {size.parameters} parameters{experts}, {purpose}."


def _row(version: str, size: _Size, chat_format: ChatFormat, purpose: str, base: bool) -> ModelSpec:
    old = version < "4"
    suffix = "-base" if base else "-instruct" if old else ""
    name = f"granite-{version}-{size.name}{suffix}"
    label = "-".join(part.upper() if part[0].isdigit() else part.capitalize() for part in size.name.split("-"))
    return ModelSpec(
        name=name,
        title=" ".join(["Granite", version, label, suffix.removeprefix("-").capitalize()]).strip(),
        about=_about(size, "which continues text and is not tuned for chat" if base else purpose),
        licence="Apache-2.0",
        family=f"Granite {version}",
        repo_id=f"ibm-granite/{name}",
        chat_format=chat_format,
        instruct=not base,
        shape=size.shape,
        sampling=_SAMPLING_42 if version == "4.2" else SamplingParams(),
        unverified=size.unverified,
    )


def _with_vocabulary(size: _Size, tokens: int, *unverified: str) -> _Size:
    return replace(
        size, shape=replace(size.shape, vocab_size=tokens), unverified=size.unverified | frozenset(unverified)
    )


def _granites() -> Iterator[ModelSpec]:
    for size in (_2B, _8B):
        yield _row("3.1", _with_vocabulary(size, 49155), "granite-3.1", _CHAT, base=False)
        # The value for 2b is published. The instruct models have three more tokens.
        unverified = () if size is _2B else ("vocab_size",)
        yield _row("3.1", _with_vocabulary(size, 49152, *unverified), "granite-3.1", _CHAT, base=True)
    for size in (_2B, _8B):  # there are no base models of 3.2
        yield _row("3.2", _with_vocabulary(size, 49155), "granite-3.2", _OPTIONAL_REASONING, base=False)
    for size in (_2B, _8B):
        yield _row("3.3", _with_vocabulary(size, 49159), "granite-3.3", _OPTIONAL_REASONING, base=False)
        yield _row("3.3", _with_vocabulary(size, 49152, "vocab_size"), "granite-3.3", _OPTIONAL_REASONING, base=True)
    for size in _SIZES_40:
        yield _row("4.0", size, "granite-4.0", _CHAT, base=False)
        yield _row("4.0", size, "granite-4.0", _CHAT, base=True)
    for size in (_3B, _8B_NEW, _30B):
        yield _row("4.1", size, "granite-4.0", _CHAT, base=False)
        yield _row("4.1", size, "granite-4.0", _CHAT, base=True)
    for size in (_3B, _8B_NEW, _30B):  # based on the base models of 4.1
        yield _row("4.2", size, "granite-4.2", _REASONING_FIRST, base=False)


MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in (SAMPLE, *_granites())}
