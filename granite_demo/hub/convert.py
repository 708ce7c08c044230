"""Converts the Llama model in a GGUF file to a Granite checkpoint."""

from pathlib import Path
from typing import Any

from granite_demo import errors
from granite_demo.types.load_options import Report


def convert_to_granite(gguf: Path, target: Path, report: Report) -> None:
    """Write the Llama model in ``gguf`` to the folder ``target`` as a float32 Granite checkpoint with its tokenizer.

    The tensors are converted one by one, because the GGUF loader of transformers is slower and cannot be cancelled.
    Raises CorruptModelError if the file is not such a model.
    """
    report("converting", 0.05, "starting transformers")
    import transformers
    from gguf import GGUFReader

    report("converting", 0.25, "reading the file")
    try:
        reader = GGUFReader(gguf)
        config = transformers.GraniteConfig(**_granite_facts(reader.fields))
        config.save_pretrained(target)
        transformers.GenerationConfig.from_model_config(config).save_pretrained(target)
        _write_weights(config, reader.tensors, target / "model.safetensors", report)
        report("converting", 0.7, "converting the tokenizer")
        transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
    except (errors.GraniteDemoError, OSError):
        raise
    except Exception as error:  # no narrower class is possible: tokenizers raises Exception itself
        raise errors.CorruptModelError(f"{gguf.name} cannot be read as a Llama model: {error!r}.") from error


def _granite_facts(fields: Any) -> dict[str, Any]:
    def value(key: str) -> Any:
        return fields[key].contents()

    return {
        "architectures": ["GraniteForCausalLM"],
        "dtype": "float32",
        "tie_word_embeddings": True,
        "vocab_size": value("llama.vocab_size"),
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": value("llama.attention.head_count"),
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        "max_position_embeddings": value("llama.context_length"),
        "rms_norm_eps": value("llama.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": value("llama.rope.freq_base")},
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": value("tokenizer.ggml.padding_token_id"),
        "attention_multiplier": value("llama.rope.dimension_count") ** -0.5,  # the scale of a Llama model
        **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling"), 1.0),
    }


def _write_weights(config: Any, tensors: Any, path: Path, report: Report) -> None:
    import numpy as np
    import torch
    from gguf import MODEL_ARCH, dequantize, get_tensor_name_map
    from safetensors.numpy import save_file
    from transformers import GraniteForCausalLM

    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in GraniteForCausalLM(config).named_parameters()}
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    stored = {tensor.name: tensor for tensor in tensors}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    converted = {}
    for index, (name, shape) in enumerate(shapes.items()):
        report("converting", 0.4 + 0.3 * index / len(shapes), f"weights {index + 1} of {len(shapes)}")
        tensor = stored[str(names.get_name(name, (".weight",)))]
        weights = dequantize(tensor.data, tensor.tensor_type)
        if groups := heads.get(name.split(".")[-2]):
            # The two rows of a rotary pair are adjacent in GGUF, and half a head apart in transformers.
            weights = weights.reshape(groups, -1, 2, shape[1]).swapaxes(1, 2)
        converted[name] = np.ascontiguousarray(weights.reshape(shape), dtype=np.float32)
    save_file(converted, path, metadata={"format": "pt"})
