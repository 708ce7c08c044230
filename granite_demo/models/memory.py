"""Memory estimates from the shape of a model: weights in each precision, KV cache, longest context.

The sizes are those of the tensors that torch and bitsandbytes allocate. bitsandbytes quantizes only the weights of
``nn.Linear``, and transformers excludes ``lm_head`` (``replace_with_bnb_linear``, ``get_keys_to_not_convert``).
Embedding, norms, convolutions, state space parameters and routers are not quantized. The experts of a mixture are not
quantized either, because they are 3-D parameters; int4 saves little memory there.
"""

import re
from dataclasses import dataclass
from typing import Literal

from granite_demo.errors import InvalidRequestError
from granite_demo.models.config import Linear, Shape, count_parameters, linears
from granite_demo.types.model_status import gigabytes

Precision = Literal["bf16", "fp16", "fp32", "int8", "int4"]
"""int8 is LLM.int8 of bitsandbytes; int4 is its nf4 or fp4, which have the same size."""
Mark = Literal["fits", "tight", "does not fit"]

MIB = 2**20
ABSMAX_BLOCK = 64
NESTED_BLOCK = 256
RUNTIME_BYTES = 512 * MIB
"""A CUDA context with the kernels and cuBLAS workspaces of torch and bitsandbytes, or torch itself on a CPU.

This memory is in use before the first tensor, and torch does not report it as allocated. The value is a rough estimate.
"""
PREFILL_TOKENS = 2048
"""The tokens of a long prompt in one forward pass. They limit the size of the activations."""
SCAN_CHUNK = 256
"""The chunk size of the Mamba-2 scan in transformers (``mamba_chunk_size``), in positions."""
MIN_CONTEXT = 1024
"""The shortest useful context in tokens. A model that does not fit with it does not fit."""
FREE_SHARE = 0.1
"""The part of the memory that must stay free for a model to fit; with less, it is tight."""
ROOMY_CONTEXT = 8192
"""Tokens that must fit beside exact weights. With less room, weights of 4 bits are used where they can be."""
UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def element_bytes(precision: Precision) -> int:
    """Return the bytes of an element that is not quantized: in the cache, the activations and the embedding."""
    return 4 if precision == "fp32" else 2


def weight_bytes(shape: Shape, precision: Precision, double_quant: bool = True) -> int:
    """Return the bytes of all parameters. ``double_quant`` applies to int4 only.

    LLM.int8 has a byte per weight and a float32 scale per row (``SCB``). 4-bit has half a byte per weight, the absolute
    maximum of each block of 64 in float32, and a table of 16 float32. With double quantization, each maximum takes a
    byte; there is a float32 per 256 maxima, their mean, and a table of 256 float32 (QLoRA, arXiv 2305.14314).
    """
    total = count_parameters(shape).total
    if precision not in ("int8", "int4"):
        return total * element_bytes(precision)
    quantized = list(linears(shape))
    kept = total - sum(linear.count * linear.size for linear in quantized)
    size = _int8_bytes if precision == "int8" else _double_quant_bytes if double_quant else _int4_bytes
    return kept * element_bytes(precision) + sum(linear.count * size(linear) for linear in quantized)


def _int8_bytes(linear: Linear) -> int:
    return linear.size + 4 * linear.rows


def _int4_bytes(linear: Linear) -> int:
    return _up(linear.size, 2) + 4 * _up(linear.size, ABSMAX_BLOCK) + 4 * 16


def _double_quant_bytes(linear: Linear) -> int:
    blocks = _up(linear.size, ABSMAX_BLOCK)
    return _up(linear.size, 2) + blocks + 4 * _up(blocks, NESTED_BLOCK) + 4 * 16 + 4 + 4 * 256


def _up(value: int, divisor: int) -> int:
    return -(-value // divisor)


def kv_bytes_per_token(shape: Shape, precision: Precision) -> int:
    """Return the bytes of the KV cache for one token. Mamba-2 layers have no KV cache."""
    return 2 * shape.attention_layers * shape.kv_heads * shape.head_dim * element_bytes(precision)


def state_bytes(shape: Shape, precision: Precision) -> int:
    """Return the bytes of the Mamba-2 state: the last convolution inputs, and a state in float32.

    The size does not depend on the number of tokens.
    """
    if not (mamba := shape.mamba):
        return 0
    layer = mamba.conv_channels * mamba.conv_kernel * element_bytes(precision) + 4 * mamba.inner_size * mamba.state_size
    return shape.mamba_layers * layer


def overhead_bytes(shape: Shape, precision: Precision, context: int) -> int:
    """Estimate the bytes that a running model takes besides weights, cache and state.

    The peak is the prefill of a prompt of ``context`` tokens. It has the runtime; the activations of the largest layer
    for one chunk of the prompt; for attention, the mask and the keys and values repeated for every query head (sdpa;
    flash attention needs less); and for int4, the largest weight dequantized to 16 bits.
    """
    return _fixed_overhead(shape, precision) + context * _overhead_per_token(shape, precision)


def _fixed_overhead(shape: Shape, precision: Precision) -> int:
    size = element_bytes(precision)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    width = 3 * (shape.intermediate_size + shape.shared_size)
    if shape.experts:
        width += shape.experts_per_token * (3 * shape.expert_size + shape.hidden_size)
    activations = size * (4 * shape.hidden_size + max(2 * (queries + keys), width))
    if shape.mamba:
        # The scan of transformers: B and C for every head, and four score tables of a chunk, in float32.
        activations += 4 * shape.mamba.heads * (3 * shape.mamba.state_size + 4 * SCAN_CHUNK)
    workspace = max(2 * linear.size for linear in linears(shape)) if precision == "int4" else 0
    return RUNTIME_BYTES + PREFILL_TOKENS * activations + workspace


def _overhead_per_token(shape: Shape, precision: Precision) -> int:
    size = element_bytes(precision)
    mask = PREFILL_TOKENS * (1 + size)  # as bool, and as the values that are added to the scores
    return 2 * size * shape.heads * shape.head_dim + mask if shape.attention_layers else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Whether a model fits. Sizes are in bytes, contexts in tokens.

    ``total`` is for ``context``. ``longest_context`` is the longest possible context.
    """

    precision: str
    """The precision of the weights, or the format of a quantized checkpoint."""
    memory: int
    context: int
    weights: int
    kv_per_token: int
    kv_at_context: int
    state: int
    overhead: int
    total: int
    longest_context: int
    limit: int
    """The context length of the model."""
    mark: Mark
    reason: str

    @property
    def roomy(self) -> bool:
        """Whether ROOMY_CONTEXT tokens fit, or the whole context if that is shorter."""
        return self.mark != "does not fit" and self.longest_context >= min(ROOMY_CONTEXT, self.limit)


def plan(
    shape: Shape,
    precision: Precision,
    memory_bytes: int,
    context: int | None = None,
    *,
    double_quant: bool = True,
    stored: int | None = None,
    label: str = "",
) -> Plan:
    """Return whether the model fits into ``memory_bytes`` with a context of ``context`` tokens.

    The default and the maximum is the context length of the model. ``stored`` are the bytes of the weights of a
    quantized checkpoint, and ``label`` is its format. Raises InvalidRequestError for values below 1.
    """
    if memory_bytes < 1 or (context is not None and context < 1):
        raise InvalidRequestError("Memory and context must be above 0.")
    context = min(context or shape.context_length, shape.context_length)
    weights = weight_bytes(shape, precision, double_quant) if stored is None else stored
    state = state_bytes(shape, precision)
    kv = kv_bytes_per_token(shape, precision)
    overhead = overhead_bytes(shape, precision, context)
    total = weights + state + overhead + kv * context
    free = memory_bytes - total
    longest = _longest_context(shape, precision, memory_bytes - weights - state)
    if longest < min(context, MIN_CONTEXT):
        mark: Mark = "does not fit"
        reason = f"The weights take {gigabytes(weights)}, so the model cannot run in {gigabytes(memory_bytes)}"
    elif free < 0:
        mark = "tight"
        reason = f"It fits with a context of up to {longest:,} tokens, but not with {context:,}"
    else:
        mark = "tight" if free < FREE_SHARE * memory_bytes else "fits"
        only = "only " if mark == "tight" else ""
        parts = f"With weights of {gigabytes(weights)} and a context of {context:,} tokens"
        reason = f"{parts}, {only}{gigabytes(free)} of {gigabytes(memory_bytes)} stay free"
    return Plan(
        precision=label or precision,
        memory=memory_bytes,
        context=context,
        weights=weights,
        kv_per_token=kv,
        kv_at_context=kv * context,
        state=state,
        overhead=overhead,
        total=total,
        longest_context=longest,
        limit=shape.context_length,
        mark=mark,
        reason=f"{reason}{_about_experts(shape, precision) if stored is None else ''}.",
    )


def _longest_context(shape: Shape, precision: Precision, room: int) -> int:
    room -= _fixed_overhead(shape, precision)
    per_token = kv_bytes_per_token(shape, precision) + _overhead_per_token(shape, precision)
    tokens = room // per_token if per_token else shape.context_length if room >= 0 else 0
    return max(0, min(tokens, shape.context_length))


def _about_experts(shape: Shape, precision: Precision) -> str:
    if precision not in ("int8", "int4") or not shape.experts:
        return ""
    size = gigabytes(count_parameters(shape).experts * element_bytes(precision))
    return f"; {size} of the weights are experts, which bitsandbytes does not quantize"


@dataclass(frozen=True, slots=True)
class Choice:
    """The precision in which to load a model, or None, with the reason and the plan for it."""

    precision: Precision | None
    reason: str
    plan: Plan


def choose_precision(
    shape: Shape,
    memory_bytes: int,
    context: int | None = None,
    *,
    quantizes: bool = True,
    exact: Precision = "bf16",
) -> Choice:
    """Choose ``exact`` if it leaves ROOMY_CONTEXT tokens, otherwise int4, otherwise ``exact`` if it fits at all.

    This is the only rule: the lists, ``auto`` and the load use it. Without ``quantizes``, int4 is not considered, as on
    a CPU. The plan of the choice is for ``context`` tokens.
    """
    whole = plan(shape, exact, memory_bytes, context)
    if whole.roomy or (not quantizes and whole.mark != "does not fit"):
        return Choice(exact, f"{exact} keeps the exact weights. {whole.reason}", whole)
    if not quantizes:
        return Choice(None, whole.reason, whole)
    small = plan(shape, "int4", memory_bytes, context)
    if small.longest_context > whole.longest_context and small.mark != "does not fit":
        why = "does not fit" if whole.mark == "does not fit" else f"leaves {whole.longest_context:,} tokens"
        return Choice("int4", f"{exact} {why}; int4 is smaller. {small.reason}", small)
    if whole.mark != "does not fit":
        return Choice(exact, f"{exact} keeps the exact weights. {whole.reason}", whole)
    return Choice(None, f"Not even int4 fits. {small.reason}", small)


def parse_memory(text: str) -> int:
    """Return the bytes of a text such as "24 GB", "24GiB", "512 MB", or "24" for GB. Raises InvalidRequestError.

    GB is 10**9 bytes. If the maker of a GPU means GiB, the result is 7 % too small, which is the safe side.
    """
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*(?:([KMGT])(I?)B?)?", text.strip().upper())
    if match is None:
        raise InvalidRequestError(f'{text!r} is not an amount of memory. Write it like "24 GB" or "24 GiB".')
    number, unit, binary = match.groups()
    size = int(float(number) * (BINARY_UNITS[unit] if binary else UNITS[unit or "G"]))
    if size < 1:
        raise InvalidRequestError("The memory must be above 0.")
    return size
