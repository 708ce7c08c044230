"""Whether the layers of a model are fused here (``layer.py``), and why."""

import importlib.util
from typing import Any

import torch

from granite_demo.loading.load import LoadedModel
from granite_demo.loading.tensor_parallel import Group
from granite_demo.types.model_status import Chosen, Fact


def fusion_problem(loaded: LoadedModel) -> str:
    """Why the layers of this model are not fused here, as half a sentence, or nothing."""
    placement, config = loaded.placement, getattr(loaded.model, "config", None)
    if placement.device != "cuda":
        return "only on a CUDA GPU"
    if getattr(config, "model_type", "") != "granite":
        return f"only for dense Granite models, and this one is {getattr(config, 'model_type', 'of an unknown kind')}"
    if placement.spread:
        return "the weights are spread over several GPUs"
    if placement.attention == "eager":
        return "eager attention was asked for"
    if (kind := placement.quantization) != "none" and (kind, placement.dtype) != ("nf4", torch.bfloat16):
        return f"its products are bitsandbytes' {kind} in {str(placement.dtype).removeprefix('torch.')}"
    if not importlib.util.find_spec("triton"):
        return "Triton is not installed"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(loaded.model.device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or newer"
    return shape_problem(config)


def shape_problem(config: Any) -> str:
    """Why a Granite of this config has layers that are not what is fused, or nothing."""
    if config.attention_bias or config.mlp_bias:
        return "its products have biases"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return "" if size >= 16 and not size & (size - 1) else f"its heads have {size} dimensions"


def fusion(problem: str) -> Chosen[bool]:
    """Whether the layers are fused: they are where there is no ``problem``."""
    if problem:
        return Chosen(False, f"not fused: {problem}", "as transformers computes them")
    reason = "seven kernels instead of about thirty, and one product for queries, keys and values"
    return Chosen(True, reason, "fused")


def sums_facts(group: Group) -> tuple[Fact, ...]:
    """How the processes of ``group`` add up what fused layers compute, as rows for the screen."""
    if group.size == 1:
        return ()
    if not group.peer_access:
        return (("Sums", "by NCCL", "the GPUs cannot write into each other's memory"),)
    return (("Sums", "of one token by each GPU writing to the others", "faster than NCCL, which has the rest"),)
