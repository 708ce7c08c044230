"""Torch models written to GGUF files of the architecture ``granite``, in float32: the same numbers for llama.cpp."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from granite_demo.engine.interleaved.engine import InterleavedEngine
from granite_demo.engine.interleaved.gguf import GgufRunner, GgufSlot
from granite_demo.loading.llama_cpp import LlamaFile
from granite_demo.loading.load import LoadedModel

MISSING = "" if find_spec("llama_cpp") else "llama-cpp-python is not installed"


def write_gguf(model: Any, path: Path) -> Path:
    """Write a GraniteForCausalLM without a tokenizer."""
    from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map

    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    writer = GGUFWriter(path, "granite")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)
    writer.add_tokenizer_model("no_vocab")
    names = get_tensor_name_map(MODEL_ARCH.GRANITE, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        values = weight.detach().float().numpy()
        if groups := heads.get(name.split(".")[-2]):
            # Rows that rotate together are side by side in GGUF, half a head apart in transformers.
            values = values.reshape(groups, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(str(names.get_name(name, (".weight",))), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class _Stumbling(GgufRunner):
    """Stumbles where hooks make the torch model stumble: over its embeddings alone."""

    embeddings: Any

    def forward(self, slot: GgufSlot, ids: Any, check: Callable[[], None]) -> torch.Tensor:
        embedded = self.embeddings(torch.tensor([list(ids)]))
        return super().forward(slot, ids, check) + (torch.nan if embedded.isnan().any() else 0.0)


def gguf_engine(loaded: LoadedModel, folder: Path, **changes: Any) -> InterleavedEngine:
    """The interleaved engine over the model's weights in a GGUF file in ``folder``, four slots, exact."""
    path = write_gguf(loaded.model, folder / f"{id(loaded)}.gguf")
    file = LlamaFile(path)
    path.unlink()  # mapped; room on the disk is short
    runner = _Stumbling(file, 4, min(loaded.context_length, 4096), torch.get_num_threads(), exact=True)
    runner.embeddings = loaded.model.get_input_embeddings()
    return InterleavedEngine(runner, loaded.eos_ids, **changes)
