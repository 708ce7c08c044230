"""Shapes have the defaults of transformers, and the parameter counts of its models, part by part."""

from collections import Counter
from typing import Any

import pytest
import torch
import transformers

from granite_demo.errors import CorruptModelError, ModelError
from granite_demo.models.catalogue import MODELS
from granite_demo.models.config import Parameters, Shape, count_parameters

SMALL = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MOE = {"num_local_experts": 5, "num_experts_per_tok": 2}
MAMBA = {"mamba_n_heads": 6, "mamba_d_state": 16, "mamba_n_groups": 2, "mamba_d_conv": 3}
MIXED = ["mamba", "attention", "mamba"]
CONFIGS: dict[str, dict[str, Any]] = {
    "granite": {"model_type": "granite", "tie_word_embeddings": True},
    "granite, untied, biases": {"model_type": "granite", "attention_bias": True, "mlp_bias": True},
    "llama with wide heads": {"model_type": "llama", "head_dim": 16},
    "one key per query": {"model_type": "granite", "num_key_value_heads": None},
    "moe": {"model_type": "granitemoe", "attention_bias": True, **MOE},
    "moe with defaults": {"model_type": "granitemoe"},
    "shared": {"model_type": "granitemoeshared", "shared_intermediate_size": 24, **MOE},
    "shared without": {"model_type": "granitemoeshared", "shared_intermediate_size": 0, **MOE},
    "hybrid": {"model_type": "granitemoehybrid", "layer_types": MIXED, "shared_intermediate_size": 24, **MOE, **MAMBA},
    "hybrid without experts": {
        "model_type": "granitemoehybrid",
        "layer_types": MIXED,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "tie_word_embeddings": True,
        "mamba_proj_bias": True,
        "mamba_conv_bias": False,
        **MAMBA,
    },
    "hybrid of attention": {"model_type": "granitemoehybrid", "layer_types": ["attention"] * 3, **MOE, **MAMBA},
    "hybrid of mamba": {"model_type": "granitemoehybrid", "mamba_d_head": 16, **MOE, **MAMBA},
}
REAL = ("3.1-2b-base", "3.3-8b-instruct", "4.1-30b", "4.0-h-small", "4.0-micro")


def shape_of(name: str) -> Shape:
    """Return the shape of the Granite model with this name."""
    shape = MODELS[f"granite-{name}"].shape
    assert shape
    return shape


def config_of(shape: Shape) -> dict[str, Any]:
    """Return a config.json with this shape, in IBM's form."""
    config = {
        "model_type": shape.model_type,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.expert_size or shape.intermediate_size,
        "max_position_embeddings": shape.context_length,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "embedding_multiplier": shape.embedding_multiplier,
        "attention_multiplier": shape.attention_multiplier,
        "residual_multiplier": shape.residual_multiplier,
        "logits_scaling": shape.logits_scaling,
    }
    if shape.model_type == "granitemoehybrid":
        config |= {
            "layer_types": ["attention"] * shape.attention_layers + ["mamba"] * shape.mamba_layers,
            "shared_intermediate_size": shape.shared_size if shape.experts else shape.intermediate_size,
            "num_local_experts": shape.experts,
            "num_experts_per_tok": shape.experts_per_token,
        }
    if shape.mamba:
        config |= {
            "mamba_n_heads": shape.mamba.heads,
            "mamba_d_head": shape.mamba.head_dim,
            "mamba_d_state": shape.mamba.state_size,
        }
    return config


def empty_model(config: dict[str, Any]) -> Any:
    """Return the model of transformers for ``config``, without memory for its weights."""
    settings = {name: value for name, value in config.items() if name != "model_type"}
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(config["model_type"], **settings)
        )


def parts_of(model: Any) -> Parameters:
    """Count the parameters of a model of transformers by their names."""
    sizes: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        words = name.split(".")
        if "mamba" in words:
            part = "mamba_linears" if {"in_proj", "out_proj"} & set(words) else "mamba_others"
        else:
            names = {"self_attn": "attention", "mlp": "mlp", "shared_mlp": "mlp", "experts": "experts"}
            names |= {"router": "router", "embed_tokens": "embedding", "lm_head": "head"}
            part = next((names[word] for word in words if word in names), "norms")
        sizes[part] += parameter.numel()
    return Parameters(**{part: sizes[part] for part in Parameters.__dataclass_fields__})


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_parts_are_those_of_transformers(kind: str) -> None:
    config = SMALL | CONFIGS[kind]
    model = empty_model(config)
    counted = count_parameters(Shape.from_config(config))
    assert counted == parts_of(model)
    assert counted.total == model.num_parameters()
    # The result is the same for the file that transformers writes, which has newer names.
    assert Shape.from_config(model.config.to_diff_dict()).mamba_layers == Shape.from_config(config).mamba_layers
    assert count_parameters(Shape.from_config(model.config.to_dict())) == counted


@pytest.mark.parametrize("name", REAL)
def test_real_shapes_have_the_parameters_of_transformers(name: str) -> None:
    shape = shape_of(name)
    model = empty_model(config_of(shape))
    assert count_parameters(shape) == parts_of(model)
    assert count_parameters(shape).total == model.num_parameters()
    assert Shape.from_config(model.config.to_dict()) == shape


@pytest.mark.parametrize(
    ("name", "total"),
    [("4.1-3b", 3_402_836_480), ("4.2-8b", 8_380_551_168), ("4.1-30b", 28_865_728_512), ("4.2-30b", 28_865_728_512)],
)
def test_counts_equal_the_published_ones(name: str, total: int) -> None:
    assert count_parameters(shape_of(name)).total == total


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("3.2-2b-instruct", 2.53),
        ("3.1-8b-instruct", 8.17),
        ("4.0-350m", 0.35),
        ("4.0-h-350m", 0.34),
        ("4.0-1b", 1.6),
        ("4.0-h-1b", 1.5),
        ("4.0-micro", 3.40),
        ("4.0-h-micro", 3.2),
        ("4.0-h-tiny", 7.0),
        ("4.0-h-small", 32.0),
    ],
)
def test_counts_equal_the_rounded_published_ones(name: str, billions: float) -> None:
    assert count_parameters(shape_of(name)).total == pytest.approx(billions * 10**9, rel=0.03)


def test_a_hybrid_is_read_field_by_field() -> None:
    shape = Shape.from_config(SMALL | CONFIGS["hybrid"] | {"attention_multiplier": 0.125, "logits_scaling": 8})
    assert (shape.layers, shape.attention_layers, shape.mamba_layers) == (3, 1, 2)
    assert (shape.experts, shape.experts_per_token, shape.expert_size, shape.shared_size) == (5, 2, 40, 24)
    assert (shape.intermediate_size, shape.head_dim, shape.context_length) == (0, 8, 256)
    assert (shape.attention_multiplier, shape.logits_scaling, shape.residual_multiplier) == (0.125, 8.0, None)
    mamba = shape.mamba
    assert mamba
    assert (mamba.heads, mamba.head_dim, mamba.inner_size, mamba.conv_channels) == (6, 16, 96, 160)


def test_attention_only_hybrids_have_no_mamba() -> None:
    # Their files have Mamba values all the same.
    shape = Shape.from_config(SMALL | CONFIGS["hybrid of attention"])
    assert shape.mamba is None
    assert shape.mamba_layers == 0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "48"}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 96}, "head_dim"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"logits_scaling": "8"}, "logits_scaling"),
        ({"layer_types": MIXED[:2]}, "layer_types"),
        ({"layer_types": ["mamba", "attention", "moe"]}, "layer_types"),
        ({"layer_types": ["mamba", "attention", []]}, "layer_types"),
        ({"mamba_n_heads": 7}, "mamba_n_heads"),
        ({"num_local_experts": -1}, "num_local_experts"),
    ],
    ids=str,
)
def test_unusable_numbers_are_named(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(CorruptModelError, match=complaint):
        Shape.from_config(SMALL | CONFIGS["hybrid"] | change)


@pytest.mark.parametrize("kind", ["qwen3", None, ["granite"]], ids=str)
def test_other_classes_are_refused(kind: Any) -> None:
    with pytest.raises(ModelError, match=r"not supported. The supported types are granite, granitemoe"):
        Shape.from_config(SMALL | {"model_type": kind})


def test_a_config_is_an_object() -> None:
    with pytest.raises(CorruptModelError, match="object"):
        Shape.from_config([])  # type: ignore[arg-type]
