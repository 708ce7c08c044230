"""Torch models written to GGUF files of the architecture ``granite``, in float32, and engines over such files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from granite_demo.engine.llama_cpp import LlamaEngine, TokenPieces
from granite_demo.loading import llama_process
from granite_demo.loading.llama_process import LlamaProcess
from granite_demo.loading.llama_server import ServerOptions
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models.gguf_header import Vocabulary as Words
from granite_demo.models.gguf_header import read_header
from tests.gguf_files import CONTROL, NORMAL, Metadata, Tensor, byte_alphabet, write
from tests.llama_child import MISSING

__all__ = ["MISSING", "file_engine", "gguf_engine", "server_options", "write_gguf"]

EXACT = """
import sys
import xllamacpp

def exact(make=xllamacpp.CommonParams):
    params = make()
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return params

xllamacpp.CommonParams = exact
sys.path.insert(0, sys.argv[1])
from granite_demo.loading.llama_server import main
main()
"""
"""A child without flash attention, which rounds to float16: logits are up to 0.02 off."""
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""What GGUF calls the weights of GraniteForCausalLM."""


def write_gguf(model: Any, path: Path, words: Metadata) -> Path:
    """Write a GraniteForCausalLM with the vocabulary ``words``. Tokens beyond the model's have weights of zero."""
    config, size = model.config, len(words["tokenizer.ggml.tokens"])
    head = config.hidden_size // config.num_attention_heads
    metadata: Metadata = {
        "general.architecture": "granite",
        "general.type": "model",
        "general.file_type": 0,
        "granite.block_count": config.num_hidden_layers,
        "granite.context_length": config.max_position_embeddings,
        "granite.embedding_length": config.hidden_size,
        "granite.feed_forward_length": config.intermediate_size,
        "granite.attention.head_count": config.num_attention_heads,
        "granite.attention.head_count_kv": config.num_key_value_heads,
        "granite.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "granite.rope.dimension_count": head,
        "granite.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "granite.attention.scale": float(config.attention_multiplier),
        "granite.embedding_scale": float(config.embedding_multiplier),
        "granite.residual_scale": float(config.residual_multiplier),
        "granite.logit_scale": float(config.logits_scaling),
        "granite.vocab_size": size,
    }
    return write(path, {**metadata, **words}, list(_tensors(model, size)))


def _tensors(model: Any, vocabulary: int) -> Iterator[Tensor]:
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    for name, weight in model.named_parameters():
        values, module = weight.detach().float(), name.removesuffix(".weight")
        prefix = ""
        if module.startswith("model.layers."):
            layer, _, module = module.removeprefix("model.layers.").partition(".")
            prefix = f"blk.{layer}."
        short = NAMES[module]
        if groups := heads.get(short):
            # Rows that rotate together are side by side in GGUF, half a head apart in transformers.
            values = values.reshape(groups, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if short in ("token_embd", "output"):
            values = torch.nn.functional.pad(values, (0, 0, 0, vocabulary - len(values)))
        data = values.contiguous().numpy().tobytes()
        yield Tensor(f"{prefix}{short}.weight", tuple(reversed(values.shape)), data=data)


def letters(size: int, end: int | None) -> Metadata:
    """A vocabulary of ``size`` letters, of which one ends an answer; without an ``end``, one more does."""
    tokens, types = byte_alphabet()[33 : 33 + size], [NORMAL] * size
    if end is None:
        tokens, types, end = [*tokens, "<|end_of_text|>"], [*types, CONTROL], size
    types[end] = CONTROL
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "dbrx",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["! !"],
        "tokenizer.ggml.eos_token_id": end,
    }


def same_words(words: Words) -> Metadata:
    """The vocabulary of a file, to write it to another one."""
    return {
        "tokenizer.ggml.model": words.model,
        "tokenizer.ggml.pre": words.pre,
        "tokenizer.ggml.tokens": list(words.tokens),
        "tokenizer.ggml.token_type": list(words.types),
        "tokenizer.ggml.merges": list(words.merges),
        "tokenizer.ggml.eos_token_id": words.eos_id,
    }


def server_options(path: Path, **changes: Any) -> ServerOptions:
    """Four slots on one thread, which share 4096 tokens."""
    usual: dict[str, Any] = {
        "path": str(path),
        "socket": "",
        "key": "",
        "context": 4096,
        "slots": 4,
        "threads": 1,
        "gpu_layers": 0,
        "cache_type": "f16",
        "batch": 128,
    }
    return ServerOptions(**{**usual, **changes})


def file_engine(path: Path, ignore_ends: bool = False, max_waiting: int = 64, **changes: Any) -> LlamaEngine:
    """The engine over a GGUF file. ``changes`` are those of ``server_options``."""
    options, header = server_options(path, **changes), read_header(path)

    def start() -> LlamaProcess:
        process = LlamaProcess(options)
        process.wait(lambda: False)
        process.warm_up()
        return process

    vocabulary = TokenPieces(header.vocabulary.pieces)
    context = min(header.context_length, options.context)
    return LlamaEngine(start(), start, vocabulary, context, max_waiting=max_waiting, ignore_ends=ignore_ends)


def gguf_engine(loaded: LoadedModel, path: Path, words: Metadata | None = None, max_waiting: int = 64) -> LlamaEngine:
    """The engine over the weights of ``loaded`` in a file at ``path``, in float32 as the KV cache is."""
    [end] = loaded.eos_ids or [None]
    write_gguf(loaded.model, path, words or letters(loaded.vocabulary, end))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_process, "SERVER_START", EXACT)
        engine = file_engine(path, not loaded.eos_ids, max_waiting, cache_type="f32")
    path.unlink()  # mapped; disks are small
    return engine
