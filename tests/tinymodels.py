"""Checkpoints of real architectures with a few thousand random weights, as ``save_pretrained`` writes them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from granite_demo.models.config import Shape

VOCABULARY = 64
SHAPE = Shape(
    model_type="granite",
    context_length=8192,
    vocab_size=VOCABULARY,
    hidden_size=32,
    layers=2,
    attention_layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
)
"""Of no checkpoint here: for what only looks at shapes."""
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "embedding_multiplier": 2.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
    # Ten times the usual: with small weights every answer repeats one token.
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16}
KINDS: dict[str, dict[str, Any]] = {
    "granite": {"model_type": "granite"},
    "granitemoe": {"model_type": "granitemoe", **_EXPERTS},
    "hybrid": {
        "model_type": "granitemoehybrid",
        "layer_types": ["mamba", "attention", "mamba"],
        "shared_intermediate_size": 48,
        **_EXPERTS,
        **_MAMBA,
    },
    "hybrid of attention": {
        "model_type": "granitemoehybrid",
        "layer_types": ["attention"] * 3,
        "shared_intermediate_size": 96,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "position_embedding_type": "rope",
        **_MAMBA,
    },
}
"""What each kind of checkpoint adds to the sizes that all share."""


def write_checkpoint(folder: Path, kind: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    """Save a model of ``kind`` with random weights, the same each time, and a tokenizer of the words w0 to w63."""
    config = AutoConfig.for_model(**{**_SIZES, **KINDS[kind], **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight[0] = 0  # the end token: answers get as long as they may
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0").save_pretrained(folder)
    return folder
