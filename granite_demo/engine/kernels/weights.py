"""The weights of Granite's products, laid out for ``fused``: those with one input as one, nothing kept twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True, slots=True)
class Weights:
    """Of products with one input: ``results`` rows of ``inputs`` numbers, or in NF4 their codes, scales and table.

    ``codes``: the numbers, (results, inputs); or sixteen of them in an int64 word, (results * inputs / 16,), two in a
    byte, the first in its upper half (as bitsandbytes packs them). ``scales``: float32, one for 64 numbers. ``table``:
    see ``codebook``. The last two are empty where nothing is quantized.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    table: torch.Tensor
    results: int
    inputs: int

    @property
    def four(self) -> bool:
        """Whether they are in NF4."""
        return self.codes.dtype == torch.int64


def codebook(numbers: torch.Tensor) -> torch.Tensor:
    """The 16 ``numbers`` of NF4 as bfloat16: their upper bytes, four in an int32, then their lower ones; (16,), twice.

    Twice, as what all threads read from one place is kept where ``prmt`` cannot take two of.
    """
    pairs = numbers.to(torch.bfloat16).view(torch.uint8).view(16, 2)
    return pairs.flip(1).t().contiguous().view(torch.int32).flatten().repeat(2)


def own(weight: torch.Tensor) -> torch.Tensor:
    """The part of a weight that this process has: all, but for tensor parallelism."""
    local: torch.Tensor = weight.to_local() if hasattr(weight, "to_local") else weight
    return local.detach()


def results(module: Any) -> int:
    """How many results this process computes of a product."""
    state = getattr(module.weight, "quant_state", None)
    return int(state.shape[0]) if state else len(own(module.weight))


class Products:
    """Products of one input, computed as one: modules whose weights are made to lie one after another."""

    def __init__(self, *modules: Any) -> None:
        self._modules = modules
        self.four = hasattr(modules[0].weight, "quant_state")
        self.weights = joined_nf4(modules) if self.four else joined(modules)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Of any number of tokens."""
        if self.four:
            return torch.cat([module(x) for module in self._modules], dim=-1)
        return F.linear(x, self.weights.codes)

    def add(self, x: torch.Tensor, residual: torch.Tensor, multiplier: float, share: float = 1.0) -> torch.Tensor:
        """share * residual + multiplier * product."""
        if self.four:
            return torch.add(residual, self(x), alpha=multiplier)
        return torch.addmm(residual, x, self.weights.codes.t(), beta=share, alpha=multiplier)


def joined(modules: Sequence[Any]) -> Weights:
    """The weights of ``modules``, one after another; theirs become views of them."""
    if len(modules) == 1:
        weights = own(modules[0].weight)
    else:
        weights = torch.cat([own(module.weight) for module in modules])
        for module, part in zip(modules, weights.split([results(module) for module in modules]), strict=True):
            module.weight = torch.nn.Parameter(part, requires_grad=False)
    nothing = weights.new_empty(0)
    return Weights(weights, nothing, nothing, *weights.shape)


def joined_nf4(modules: Sequence[Any]) -> Weights:
    """The same for weights of bitsandbytes in NF4. Quantized scales become float32, which is 0.4 bits a weight more."""
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
    whole, all_scales = torch.cat(packed), torch.cat(scales)
    parts = zip(
        modules, whole.split([len(part) for part in packed]), all_scales.split([len(s) for s in scales]), strict=True
    )
    for module, part, scale in parts:
        module.weight.data = part.view(module.weight.shape)
        module.weight.quant_state.absmax = scale
    return Weights(
        whole.view(torch.int64), all_scales, table, sum(state.shape[0] for state in states), states[0].shape[1]
    )
