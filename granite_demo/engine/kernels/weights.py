"""The weights of a fused layer. Weights with the same input are in one tensor, without a second copy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of products with one input: a matrix (results, inputs), exact or in NF4.

    ``codes``: (results, inputs), the exact weights. In NF4: (results * inputs / 16,) int64, with sixteen codes in a
    word, two in a byte, the first one in the upper half (the packing of bitsandbytes). ``scales``: float32, one for 64
    weights. ``table``: see ``codebook``. Without quantization, ``scales`` and ``table`` are empty.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    table: torch.Tensor
    results: int
    inputs: int

    @property
    def nf4(self) -> bool:
        """Whether the weights are in NF4."""
        return self.codes.dtype == torch.int64


def codebook(numbers: torch.Tensor) -> torch.Tensor:
    """Return the 16 ``numbers`` of NF4 as bfloat16 bytes: the upper bytes in four int32, then the lower bytes in four.

    The result has two copies, shape (16,), int32. If all threads read the same address, the compiler puts the values in
    uniform registers, of which ``prmt`` cannot use two.
    """
    pairs = numbers.to(torch.bfloat16).view(torch.uint8).view(16, 2)
    return pairs.flip(1).t().contiguous().view(torch.int32).flatten().repeat(2)


def local_part(weight: torch.Tensor) -> torch.Tensor:
    """Return the part of a weight in this process. Without tensor parallelism, that is the complete weight."""
    local: torch.Tensor = weight.to_local() if hasattr(weight, "to_local") else weight
    return local.detach()


def result_count(module: Any) -> int:
    """Return how many results of a product this process computes."""
    state = getattr(module.weight, "quant_state", None)
    return int(state.shape[0]) if state else len(local_part(module.weight))


class Products:
    """Several linear modules with the same input, computed as one product."""

    def __init__(self, *modules: Any) -> None:
        self._modules = modules
        self.nf4 = hasattr(modules[0].weight, "quant_state")
        self.weights = join_nf4_weights(modules) if self.nf4 else join_weights(modules)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the results of all modules for n tokens: (n, inputs) to (n, results)."""
        if self.nf4:
            return torch.cat([module(x) for module in self._modules], dim=-1)
        return F.linear(x, self.weights.codes)

    def add(self, x: torch.Tensor, residual: torch.Tensor, multiplier: float, share: float = 1.0) -> torch.Tensor:
        """Return share * residual + multiplier * product."""
        if self.nf4:
            return torch.add(residual, self(x), alpha=multiplier)
        return torch.addmm(residual, x, self.weights.codes.t(), beta=share, alpha=multiplier)


def join_weights(modules: Sequence[Any]) -> Weights:
    """Return the weights of ``modules`` in one tensor. The parameters of the modules become views of it."""
    if len(modules) == 1:
        weights = local_part(modules[0].weight)
    else:
        weights = torch.cat([local_part(module.weight) for module in modules])
        for module, part in zip(modules, weights.split([result_count(module) for module in modules]), strict=True):
            module.weight = torch.nn.Parameter(part, requires_grad=False)
    nothing = weights.new_empty(0)
    return Weights(weights, nothing, nothing, *weights.shape)


def join_nf4_weights(modules: Sequence[Any]) -> Weights:
    """Return the NF4 weights of bitsandbytes modules in one tensor. Their parameters become views of it.

    Quantized scales become float32, which takes 0.4 bits more for each weight.
    """
    from bitsandbytes import functional

    states = [module.weight.quant_state for module in modules]
    for state in states:
        if state.nested:
            state.absmax = functional.dequantize_blockwise(state.absmax, state.state2).float() + state.offset
            state.nested, state.state2, state.offset = False, None, None
    table, scales = codebook(states[0].code), [state.absmax.reshape(-1) for state in states]
    packed = [module.weight.data.reshape(-1) for module in modules]
    if len(modules) == 1:
        return Weights(packed[0].view(torch.int64), scales[0], table, *states[0].shape)
    codes, all_scales = torch.cat(packed), torch.cat(scales)
    parts = zip(
        modules, codes.split([len(part) for part in packed]), all_scales.split([len(s) for s in scales]), strict=True
    )
    for module, part, scale in parts:
        module.weight.data = part.view(module.weight.shape)
        module.weight.quant_state.absmax = scale
    return Weights(
        codes.view(torch.int64), all_scales, table, sum(state.shape[0] for state in states), states[0].shape[1]
    )
