"""Whether the layers of a model can be fused (``layer.py``), and why."""

import importlib.util
from typing import Any

import torch

from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.loading.tensor_parallel import Group
from granite_demo.models.config import MAMBA_LAYERS
from granite_demo.types.model_status import Chosen, Fact

FUSED_TYPES = {"granite", "granitemoehybrid"}
"""The types of models whose layers can be fused, if they are dense."""


def fusion_problem(loaded: LoadedModel) -> str:
    """Return why the layers of this model cannot be fused, as a part of a sentence, or "" if they can."""
    placement, config = loaded.placement, getattr(loaded.model, "config", None)
    if placement.device != "cuda":
        return "only on a CUDA GPU"
    if (name := getattr(config, "model_type", "unknown")) not in FUSED_TYPES:
        return f"only for dense Granite models, and the type of this one is {name}"
    if placement.spread:
        return "the weights are spread over several GPUs"
    if placement.attention == "eager":
        return "the attention is eager"
    if (kind := placement.quantization) != "none" and (kind, placement.dtype) != ("nf4", torch.bfloat16):
        return f"its weights are {kind} of bitsandbytes with {str(placement.dtype).removeprefix('torch.')}"
    if not importlib.util.find_spec("triton"):
        return "Triton is not installed"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(loaded.model.device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or newer"
    return shape_problem(config)


def shape_problem(config: Any) -> str:
    """Return why the layers of a Granite model with this config cannot be fused, or "" if they can."""
    if not MAMBA_LAYERS.isdisjoint(getattr(config, "layer_types", None) or ()):
        return "only for dense Granite models, and this one has Mamba layers"
    if getattr(config, "num_local_experts", 0):
        return "only for dense Granite models, and this one has experts"
    if getattr(config, "position_embedding_type", "rope") != "rope":
        return "it has no rotary embedding"
    if config.attention_bias or getattr(config, "mlp_bias", False):
        return "its linear layers have biases"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return "" if size >= 16 and not size & (size - 1) else f"its heads have {size} dimensions"


def fusion(problem: str) -> Chosen[bool]:
    """Return whether the layers are fused. They are if there is no ``problem``."""
    if problem:
        return Chosen(False, f"not fused: {problem}", "as transformers computes them")
    reason = "seven kernels instead of about thirty, and one product for queries, keys and values"
    return Chosen(True, reason, "fused")


def sums_facts(group: Group) -> tuple[Fact, ...]:
    """Return rows for the Settings tab on how the processes of ``group`` add the results of fused layers."""
    if group.size == 1:
        return ()
    if not group.peer_access:
        return (("Sums", "by NCCL", "the GPUs cannot write to each other's memory"),)
    return (("Sums", "for one token, each GPU writes to the others", "faster than NCCL, which adds the others"),)
