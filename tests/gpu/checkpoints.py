"""Checkpoints with the real shapes of Granite and random weights, for measuring where no hub can be reached.

``python -m tests.gpu.checkpoints granite-3.3-2b-instruct FOLDER`` writes one.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    GraniteMoeHybridConfig,
    PreTrainedTokenizerFast,
)

from granite_demo.models import catalogue
from granite_demo.models.config import Shape

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"
"""The words of a conversation, for a model that cannot read."""


def random_model(shape: Shape, attention: str | None = None) -> Any:
    """A Granite of ``shape`` on the GPU in bfloat16, with random weights."""
    make: Any = AutoModelForCausalLM
    with torch.device("cuda"):
        return make.from_config(config_of(shape), attn_implementation=attention, dtype=torch.bfloat16).eval()


def config_of(shape: Shape) -> GraniteConfig | GraniteMoeHybridConfig:
    """The config of a Granite of ``shape``. The attention layers of a hybrid have equal distances."""
    sizes: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.expert_size or shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.context_length,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "embedding_multiplier": shape.embedding_multiplier or 12.0,
        "attention_multiplier": shape.attention_multiplier or 1 / shape.head_dim,
        "residual_multiplier": shape.residual_multiplier or 0.22,
        "logits_scaling": shape.logits_scaling or shape.hidden_size / 256,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if shape.model_type != "granitemoehybrid":
        return GraniteConfig(**sizes)
    mamba, count = shape.mamba, shape.attention_layers
    if mamba:
        sizes |= {
            "mamba_n_heads": mamba.heads,
            "mamba_d_head": mamba.head_dim,
            "mamba_d_state": mamba.state_size,
            "mamba_n_groups": mamba.groups,
            "mamba_expand": mamba.inner_size // shape.hidden_size,
        }
    attention = {(2 * index + 1) * shape.layers // (2 * count) for index in range(count)}
    return GraniteMoeHybridConfig(
        **sizes,
        layer_types=["attention" if index in attention else "mamba" for index in range(shape.layers)],
        position_embedding_type=None if mamba else "rope",
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.experts_per_token,
        shared_intermediate_size=shape.shared_size or shape.intermediate_size,
    )


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """Save a ``random_model``, and a tokenizer of single words."""
    random_model(shape).save_pretrained(folder)
    _write_tokenizer(folder, shape.vocab_size)


def small_config(**changes: Any) -> GraniteConfig:
    """A Granite of a few layers with heads of 64, whose greedy answers do not repeat one token."""
    sizes: dict[str, Any] = {
        "vocab_size": 1000,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.015625,
        "residual_multiplier": 0.22,
        "logits_scaling": 2.0,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return GraniteConfig(**sizes | changes)


def small_granite_4_config(**changes: Any) -> GraniteMoeHybridConfig:
    """The model of ``small_config`` in the type of Granite 4.0, with attention in every layer and without experts."""
    sizes = small_config(**changes).to_dict()
    names = ("model_type", "transformers_version", "architectures", "mlp_bias", "dtype")
    return GraniteMoeHybridConfig(
        **{name: value for name, value in sizes.items() if name not in names},
        layer_types=["attention"] * sizes["num_hidden_layers"],
        position_embedding_type="rope",
        num_local_experts=0,
        num_experts_per_tok=0,
        mamba_n_heads=8,  # of no layer, but transformers checks it
        shared_intermediate_size=sizes["intermediate_size"],
    )


def write_small(folder: Path) -> None:
    """Save a model of ``small_config`` in float32 with random weights, always the same, and a tokenizer."""
    torch.manual_seed(0)
    GraniteForCausalLM(small_config()).eval().save_pretrained(folder)
    _write_tokenizer(folder, small_config().vocab_size)


def _write_tokenizer(folder: Path, count: int) -> None:
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(count)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", chat_template=TEMPLATE).save_pretrained(folder)


def main() -> None:
    """Write the checkpoint of the model of the registry that the first argument names to the second."""
    name, folder = sys.argv[1:]
    shape = catalogue.MODELS[name].shape
    assert shape is not None
    write_checkpoint(Path(folder), shape)


if __name__ == "__main__":
    main()
