"""What fits where, from a model's shape alone: weights in each precision, cache, longest context.

Pure arithmetic without torch. The bytes are those of the tensors that torch and bitsandbytes keep. bitsandbytes
quantizes the weights of ``nn.Linear`` and nothing else, and transformers leaves out ``lm_head``
(``replace_with_bnb_linear``, ``get_keys_to_not_convert``). Embedding, norms, convolutions, state space parameters and
the router stay as they are, and so do the experts of a mixture: they are 3-D parameters, not linears, so int4 saves
little there.
"""

import re
from dataclasses import dataclass
from typing import Literal

from granite_demo.errors import InvalidRequestError
from granite_demo.models.config import Linear, Shape, count_parameters, linears

Precision = Literal["bf16", "fp16", "fp32", "int8", "int4"]
"""int8 is bitsandbytes' LLM.int8; int4 its nf4 or fp4, which are equally large."""
Mark = Literal["fits", "tight", "does not fit"]

MIB = 2**20
ABSMAX_BLOCK = 64
NESTED_BLOCK = 256
RUNTIME_BYTES = 512 * MIB
"""A CUDA context with the kernels and cuBLAS workspaces of torch and bitsandbytes, or torch itself on a CPU: taken
before the first tensor and outside of what torch reports as allocated. A round figure, not a measured one."""
PREFILL_TOKENS = 2048
"""Tokens in one forward pass of a long prompt, as the single-stream engine feeds it: they bound the activations."""
SCAN_CHUNK = 256
"""Positions that transformers' Mamba-2 scan compares with one another at a time (mamba_chunk_size)."""
LEAST_CONTEXT = 1024
"""Tokens below which a conversation is not worth loading a model for."""
FREE_SHARE = 0.1
"""What has to stay free for a model to fit rather than be tight."""
_PREFERRED: tuple[Precision, Precision] = ("bf16", "int4")
_WHY_NOT = {"tight": "is tight", "does not fit": "does not fit"}
UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def element_bytes(precision: Precision) -> int:
    """Bytes of an element that is not quantized: of the cache, the activations and the embedding."""
    return 4 if precision == "fp32" else 2


def weight_bytes(shape: Shape, precision: Precision, double_quant: bool = True) -> int:
    """Bytes of all parameters. ``double_quant`` concerns int4 only.

    LLM.int8 keeps a byte per weight and a float32 scale per row (``SCB``). 4-bit keeps half a byte per weight, an
    absolute maximum per block of 64 in float32, and a table of 16 float32. With double quantization the maxima take
    a byte each, with a float32 per 256 of them, their mean, and a table of 256 float32 (QLoRA, arXiv 2305.14314).
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
    """A key and a value for each key/value head of each attention layer; Mamba-2 layers have none."""
    return 2 * shape.attention_layers * shape.kv_heads * shape.head_dim * element_bytes(precision)


def state_bytes(shape: Shape, precision: Precision) -> int:
    """What the Mamba-2 layers remember, however long the text: the last inputs, and a float32 state."""
    if not (mamba := shape.mamba):
        return 0
    layer = mamba.conv_channels * mamba.conv_kernel * element_bytes(precision) + 4 * mamba.inner_size * mamba.state_size
    return shape.mamba_layers * layer


def overhead_bytes(shape: Shape, precision: Precision, context: int) -> int:
    """The rest of what a running model takes at its peak, the prefill of a prompt that fills ``context``. An estimate.

    The runtime; the activations of the largest layer for one chunk of the prompt; while attention over the whole
    context runs in a layer, keys and values repeated for every query head and the mask (sdpa; flash attention needs
    less); for int4, the largest weight turned back into 16 bits.
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
        # transformers' own scan: B and C for every head, and four tables of scores within a chunk, in float32
        activations += 4 * shape.mamba.heads * (3 * shape.mamba.state_size + 4 * SCAN_CHUNK)
    workspace = max(2 * linear.size for linear in linears(shape)) if precision == "int4" else 0
    return RUNTIME_BYTES + PREFILL_TOKENS * activations + workspace


def _overhead_per_token(shape: Shape, precision: Precision) -> int:
    size = element_bytes(precision)
    mask = PREFILL_TOKENS * (1 + size)  # as bool, and as the numbers that are added
    return 2 * size * shape.heads * shape.head_dim + mask if shape.attention_layers else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Whether a model fits, in bytes. ``total`` is for the wanted context, ``longest_context`` what is possible."""

    precision: Precision
    memory: int
    context: int
    weights: int
    kv_per_token: int
    kv_at_context: int
    state: int
    overhead: int
    total: int
    longest_context: int
    mark: Mark
    reason: str


def plan(
    shape: Shape, precision: Precision, memory_bytes: int, context: int | None = None, *, double_quant: bool = True
) -> Plan:
    """Whether the model fits into ``memory_bytes`` with ``context`` tokens, by default and at most all it can hold."""
    if memory_bytes < 1 or (context is not None and context < 1):
        raise InvalidRequestError("Memory and context must be above 0.")
    context = min(context or shape.context_length, shape.context_length)
    weights, state = weight_bytes(shape, precision, double_quant), state_bytes(shape, precision)
    kv = kv_bytes_per_token(shape, precision)
    overhead = overhead_bytes(shape, precision, context)
    total = weights + state + overhead + kv * context
    free = memory_bytes - total
    longest = _longest_context(shape, precision, memory_bytes - weights - state)
    if longest < min(context, LEAST_CONTEXT):
        mark: Mark = "does not fit"
        reason = f"The weights take {gigabytes(weights)}, which leaves no room to work in {gigabytes(memory_bytes)}"
    elif free < 0:
        mark = "tight"
        reason = f"It fits with a context of up to {longest:,} tokens, not the {context:,} wanted"
    else:
        mark = "tight" if free < FREE_SHARE * memory_bytes else "fits"
        only = "only " if mark == "tight" else ""
        parts = f"With weights of {gigabytes(weights)} and a context of {context:,} tokens"
        reason = f"{parts}, {only}{gigabytes(free)} of {gigabytes(memory_bytes)} stay free"
    return Plan(
        precision=precision,
        memory=memory_bytes,
        context=context,
        weights=weights,
        kv_per_token=kv,
        kv_at_context=kv * context,
        state=state,
        overhead=overhead,
        total=total,
        longest_context=longest,
        mark=mark,
        reason=f"{reason}{_about_experts(shape, precision)}.",
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
    """The precision to load a model in, or None, with its reason and the plan that decided."""

    precision: Precision | None
    reason: str
    plan: Plan


def best_precision(shape: Shape, memory_bytes: int, context: int | None = None) -> Choice:
    """bf16 if it fits, else int4; if both are tight, bf16, which is exact; if neither fits, None."""
    exact, small = (plan(shape, precision, memory_bytes, context) for precision in _PREFERRED)
    for mark in ("fits", "tight"):
        if exact.mark == mark:
            return Choice("bf16", f"bf16 keeps the weights as they were trained. {exact.reason}", exact)
        if small.mark == mark:
            return Choice("int4", f"bf16 {_WHY_NOT[exact.mark]}, int4 is smaller. {small.reason}", small)
    return Choice(None, f"Not even int4 fits. {small.reason}", small)


def gigabytes(size: int) -> str:
    """``size`` in bytes as text, in powers of ten like the sizes of files: 6.8 GB."""
    return f"{size / 10**9:,.1f} GB"


def parse_memory(text: str) -> int:
    """Bytes of "24 GB", "24GiB", "512 MB" or "24", which is in GB. Raises InvalidRequestError.

    GB is 10**9 here: on a card whose maker means GiB that errs by 7 % on the safe side.
    """
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*(?:([KMGT])(I?)B?)?", text.strip().upper())
    if match is None:
        raise InvalidRequestError(f'{text!r} is no amount of memory. Write it like "24 GB" or "24 GiB".')
    number, unit, binary = match.groups()
    size = int(float(number) * (BINARY_UNITS[unit] if binary else UNITS[unit or "G"]))
    if size < 1:
        raise InvalidRequestError("The memory must be above 0.")
    return size
