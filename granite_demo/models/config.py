"""The sizes of a model from its config.json, and the parameter counts that follow from them.

Supports the decoder-only Granite classes and Llama. The counts are those of the classes in transformers.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

from granite_demo.errors import CorruptModelError, ModelError

DENSE_TYPES = {"granite", "llama"}
MOE_TYPES = {"granitemoe", "granitemoeshared", "granitemoehybrid"}
ATTENTION_LAYERS = {"attention", "full_attention"}
MAMBA_LAYERS = {"mamba", "linear_attention"}


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of ``folder``/config.json.

    Raises CorruptModelError, also for a config that names code to run.
    """
    path = folder / "config.json"
    try:
        text = path.read_bytes().decode("utf-8")
        config = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        # transformers reads the file, too, and takes no byte order mark.
        why = "starts with a byte order mark. Save it in UTF-8 without one" if "BOM" in str(error) else ""
        raise CorruptModelError(f"{path} {why or f'cannot be read: {error}. Get the file again'}.") from error
    if not isinstance(config, dict):
        raise CorruptModelError(f"{path} does not hold an object. Get the file again.")
    for value in _implementations(config):
        # transformers downloads such code from the hub and runs it if the package kernels is installed.
        raise CorruptModelError(f"{folder / 'config.json'} names code to run: {value!r:.80}. Choose another model.")
    return config


def _implementations(config: Any) -> Iterator[Any]:
    """Yield the values of all ``*_implementation`` keys, at any depth, that are not plain names."""
    if isinstance(config, dict):
        for key, value in config.items():
            if "_implementation" in key and value is not None and not re.fullmatch(r"\w*", str(value)):
                yield value
            yield from _implementations(value)


def is_planned(config: Mapping[str, Any]) -> bool:
    """Return whether the planner knows the architecture of this config.json."""
    kind = config.get("model_type")
    return isinstance(kind, str) and kind in DENSE_TYPES | MOE_TYPES


@dataclass(frozen=True, slots=True)
class Mamba:
    """The Mamba-2 layers of a hybrid model (``GraniteMoeHybridMambaLayer`` in transformers)."""

    heads: int
    head_dim: int
    state_size: int
    groups: int = 1
    conv_kernel: int = 4
    conv_bias: bool = True
    proj_bias: bool = False

    @property
    def inner_size(self) -> int:
        """The number of channels of the state space model."""
        return self.heads * self.head_dim

    @property
    def conv_channels(self) -> int:
        """The number of channels of the convolution: the input, B and C."""
        return self.inner_size + 2 * self.groups * self.state_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes in a config.json. ``intermediate_size`` is that of the dense MLP, or 0 if there are only experts."""

    model_type: str
    context_length: int
    vocab_size: int
    hidden_size: int
    layers: int
    attention_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0
    shared_size: int = 0
    mamba: Mamba | None = None
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: float | None = None
    attention_multiplier: float | None = None
    residual_multiplier: float | None = None
    logits_scaling: float | None = None

    @property
    def mamba_layers(self) -> int:
        """The number of layers without attention."""
        return self.layers - self.attention_layers

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Shape":
        """Return the shape in ``config``, with the defaults of transformers for missing keys.

        Raises ModelError for an unknown model type, and CorruptModelError for unusable values.
        """
        if not isinstance(config, Mapping):
            raise CorruptModelError("config.json does not contain a JSON object. Download the file again.")
        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in DENSE_TYPES | MOE_TYPES:
            known = ", ".join(sorted(DENSE_TYPES | MOE_TYPES))
            raise ModelError(f"Models of type {kind!r} are not supported. The supported types are {known}.")
        layers = _integer(config, "num_hidden_layers")
        heads, hidden = _integer(config, "num_attention_heads"), _integer(config, "hidden_size")
        attention = layers
        if kind == "granitemoehybrid":
            attention = _count_attention_layers(config, layers)
        return cls(
            model_type=kind,
            context_length=_integer(config, "max_position_embeddings"),
            vocab_size=_integer(config, "vocab_size"),
            hidden_size=hidden,
            layers=layers,
            attention_layers=attention,
            heads=heads,
            kv_heads=_integer(config, "num_key_value_heads", heads),
            head_dim=_integer(config, "head_dim", hidden // heads),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=kind in DENSE_TYPES and bool(config.get("mlp_bias", False)),
            mamba=_read_mamba(config, hidden) if attention < layers else None,
            **_read_mlp(config, kind),
            embedding_multiplier=_number(config, "embedding_multiplier"),
            attention_multiplier=_number(config, "attention_multiplier"),
            residual_multiplier=_number(config, "residual_multiplier"),
            logits_scaling=_number(config, "logits_scaling"),
        )


def _integer(config: Mapping[str, Any], key: str, default: int | None = None, minimum: int = 1) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise CorruptModelError(f"The value {value!r} of {key} in config.json is invalid. Download the file again.")
    return value


def _number(config: Mapping[str, Any], key: str) -> float | None:
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CorruptModelError(f"The value {value!r} of {key} in config.json is invalid. Download the file again.")
    return float(value)


def _read_mlp(config: Mapping[str, Any], kind: str) -> dict[str, int]:
    """Return the sizes of MLP and experts.

    In the MoE classes, ``intermediate_size`` is that of one expert. The MLP of a hybrid without experts has the key
    ``shared_intermediate_size``.
    """
    if kind in DENSE_TYPES:
        return {"intermediate_size": _integer(config, "intermediate_size")}
    shared = 0
    if kind != "granitemoe":
        shared = _integer(config, "shared_intermediate_size", 0 if kind == "granitemoeshared" else 1024, minimum=0)
    experts = _integer(config, "num_local_experts", 8, minimum=0)
    if not experts:
        return {"intermediate_size": shared}
    return {
        "experts": experts,
        "experts_per_token": _integer(config, "num_experts_per_tok", 2),
        "expert_size": _integer(config, "intermediate_size"),
        "shared_size": shared,
    }


def _count_attention_layers(config: Mapping[str, Any], layers: int) -> int:
    types = config.get("layer_types") or config.get("layers_block_type")
    if types is None:
        return 0  # the default of transformers
    known = (*ATTENTION_LAYERS, *MAMBA_LAYERS)  # not a set, because an entry can be unhashable
    if not isinstance(types, list) or len(types) != layers or not all(name in known for name in types):
        raise CorruptModelError(f"config.json has no valid layer_types for {layers} layers. Download the file again.")
    return len([name for name in types if name in ATTENTION_LAYERS])


def _read_mamba(config: Mapping[str, Any], hidden: int) -> Mamba:
    heads = _integer(config, "mamba_n_heads", 128)
    inner = _integer(config, "mamba_expand", 2) * hidden
    head_dim = inner // heads if config.get("mamba_d_head") in (None, "auto") else _integer(config, "mamba_d_head")
    if heads * head_dim != inner:
        raise CorruptModelError("mamba_n_heads, mamba_d_head and mamba_expand in config.json do not match.")
    return Mamba(
        heads=heads,
        head_dim=head_dim,
        state_size=_integer(config, "mamba_d_state", 256),
        groups=_integer(config, "mamba_n_groups", 1),
        conv_kernel=_integer(config, "mamba_d_conv", 4),
        conv_bias=bool(config.get("mamba_conv_bias", True)),
        proj_bias=bool(config.get("mamba_proj_bias", False)),
    )


@dataclass(frozen=True, slots=True)
class Parameters:
    """The number of parameters in each part of a model."""

    embedding: int
    attention: int
    mlp: int
    norms: int
    experts: int
    router: int
    mamba_linears: int
    mamba_others: int
    """Convolution, time step bias, A, D and gated norm."""
    head: int
    """0 if the head shares the weights of the embedding."""

    @property
    def total(self) -> int:
        """All parameters, as ``model.num_parameters()`` counts them."""
        return sum(astuple(self))


@dataclass(frozen=True, slots=True)
class Linear:
    """``count`` equal ``nn.Linear`` modules. Each has a weight of shape (``rows``, ``columns``)."""

    part: Literal["attention", "mlp", "mamba"]
    count: int
    rows: int
    columns: int
    bias: bool = False

    @property
    def size(self) -> int:
        """The number of elements of one weight."""
        return self.rows * self.columns

    @property
    def parameters(self) -> int:
        """The number of elements of all weights and biases."""
        return self.count * (self.size + self.rows * self.bias)


def linears(shape: Shape) -> Iterator[Linear]:
    """Yield all ``nn.Linear`` modules except the head. In the MoE classes, one ``input_linear`` has gate and up."""
    hidden, queries, keys = shape.hidden_size, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for count, rows, columns in ((1, queries, hidden), (2, keys, hidden), (1, hidden, queries)):
        yield Linear("attention", count * shape.attention_layers, rows, columns, shape.attention_bias)
    width = shape.shared_size if shape.experts else shape.intermediate_size
    if width:
        gates, rows = (2, width) if shape.model_type in DENSE_TYPES else (1, 2 * width)
        yield Linear("mlp", gates * shape.layers, rows, hidden, shape.mlp_bias)
        yield Linear("mlp", shape.layers, hidden, width, shape.mlp_bias)
    if mamba := shape.mamba:
        projected = mamba.inner_size + mamba.conv_channels + mamba.heads
        yield Linear("mamba", shape.mamba_layers, projected, hidden, mamba.proj_bias)
        yield Linear("mamba", shape.mamba_layers, hidden, mamba.inner_size, mamba.proj_bias)


def count_parameters(shape: Shape) -> Parameters:
    """Return the exact parameter counts of the causal language model with this shape."""
    vocabulary = shape.vocab_size * shape.hidden_size
    sums = {"attention": 0, "mlp": 0, "mamba": 0}
    for linear in linears(shape):
        sums[linear.part] += linear.parameters
    return Parameters(
        embedding=vocabulary,
        attention=sums["attention"],
        mlp=sums["mlp"],
        norms=(2 * shape.layers + 1) * shape.hidden_size,
        experts=shape.layers * shape.experts * 3 * shape.hidden_size * shape.expert_size,
        router=shape.layers * shape.experts * shape.hidden_size,
        mamba_linears=sums["mamba"],
        mamba_others=shape.mamba_layers * _mamba_others(shape.mamba) if shape.mamba else 0,
        head=0 if shape.tie_word_embeddings else vocabulary,
    )


def _mamba_others(mamba: Mamba) -> int:
    return mamba.conv_channels * (mamba.conv_kernel + mamba.conv_bias) + 3 * mamba.heads + mamba.inner_size
