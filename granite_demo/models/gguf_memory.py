"""Calculates the memory that llama.cpp needs for a GGUF file, from its header or its shape. Does not import torch."""

from dataclasses import dataclass
from typing import Literal

from granite_demo.models.config import Shape
from granite_demo.models.gguf_header import TENSOR_TYPES, GgufHeader, round_up
from granite_demo.models.memory import FREE_SHARE, MIN_CONTEXT, Mark, Plan, kv_bytes_per_token, state_bytes
from granite_demo.types.model_status import gigabytes

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
"""The types of llama.cpp's KV cache."""


@dataclass(frozen=True, slots=True)
class GgufMemory:
    """The memory that llama.cpp needs for a model, in bytes."""

    weights: int
    """Mapped from the file. The operating system can release these pages."""
    repacked: int
    """Copies of weights in the layout that the processor needs. The mapped originals are then no longer read."""
    cache: int
    """Keys and values of all conversations."""
    states: int
    """States of the Mamba layers of all conversations."""
    compute: int
    """Activations of one forward pass and the logits; an estimate."""
    process: int
    """A Python process with the library and its vocabulary; an estimate."""

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.repacked + self.cache + self.states + self.compute + self.process


REPACKED = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
"""The types that llama.cpp copies on a processor with AVX2. Other processors have more such types."""
CACHE_MULTIPLE = 256
"""llama.cpp rounds the size of the cache up to a multiple of this number of tokens."""
BATCH = 128
"""Tokens in one pass. After each, llama.cpp looks at cancelled requests: with 512 the next one waits 3.8 s."""
PROCESS_BYTES, TOKEN_BYTES = 34 * 2**20, 350
"""Measured on Linux: the process without a model, and for each token of the vocabulary."""


def memory_of(
    header: GgufHeader, context: int, slots: int, kv_type: KvType = "f16", *, batch: int = BATCH
) -> GgufMemory:
    """Return the memory for ``slots`` conversations that share a cache of ``context`` tokens.

    ``batch`` is the number of tokens in one forward pass (``n_ubatch``). Models with a sliding window or with latent
    attention need less cache.
    """
    return GgufMemory(
        weights=header.tensor_bytes,
        repacked=_repacked_bytes(header),
        cache=round_up(context, CACHE_MULTIPLE) * cache_bytes_per_token(header, kv_type),
        states=slots * _state_bytes(header),
        compute=_compute_bytes(header, round_up(context, CACHE_MULTIPLE), slots, batch),
        process=PROCESS_BYTES + TOKEN_BYTES * len(header.vocabulary.tokens),
    )


def plan_gguf(header: GgufHeader, memory_bytes: int, context: int | None = None, slots: int = 4) -> Plan:
    """Return whether the file fits into ``memory_bytes``, with ``slots`` conversations that share ``context`` tokens.

    The default and the maximum is the context length of the file.
    """
    context = min(context or header.context_length, header.context_length)
    memory = memory_of(header, context, slots)
    each = cache_bytes_per_token(header) + 2 * BATCH
    beside = memory.states + memory.compute + memory.process
    room = memory_bytes - memory.weights - beside + 2 * BATCH * context
    longest = max(0, min(header.context_length, room // each))
    total = memory.weights + beside + memory.cache
    free = memory_bytes - total
    mark: Mark = (
        "does not fit"
        if longest < min(context, MIN_CONTEXT)
        else "tight"
        if free < FREE_SHARE * memory_bytes
        else "fits"
    )
    if mark == "does not fit":
        reason = f"The file takes {gigabytes(memory.weights)}, so it cannot run in {gigabytes(memory_bytes)}."
    else:
        reason = f"With {gigabytes(memory.weights)} of weights, a context of up to {longest:,} tokens fits."
    return Plan(
        precision=header.quantization,
        memory=memory_bytes,
        context=context,
        weights=memory.weights,
        kv_per_token=cache_bytes_per_token(header),
        kv_at_context=memory.cache,
        state=memory.states,
        overhead=memory.compute + memory.process,
        total=total,
        longest_context=longest,
        limit=header.context_length,
        mark=mark,
        reason=reason,
    )


def running_bytes(shape: Shape | None, context: int, slots: int = 4) -> int:
    """Estimate the bytes that a model takes besides its weights, before its file is here.

    ``slots`` conversations share a cache of ``context`` tokens in float16. Without a ``shape``, only the process
    counts.
    """
    if shape is None:
        return PROCESS_BYTES
    wide = max(shape.intermediate_size, shape.experts_per_token * shape.expert_size + shape.shared_size)
    compute = 4 * BATCH * (3 * wide + 5 * shape.hidden_size) + 2 * BATCH * context
    cache = context * kv_bytes_per_token(shape, "fp16") + slots * state_bytes(shape, "fp16")
    return cache + compute + PROCESS_BYTES + TOKEN_BYTES * shape.vocab_size


def _repacked_bytes(header: GgufHeader) -> int:
    # The embedding is copied only if it is also the output matrix.
    has_output = any(tensor.name == "output.weight" for tensor in header.tensors)
    return sum(
        tensor.size
        for tensor in header.tensors
        if tensor.kind in REPACKED and len(tensor.dims) > 1 and not (has_output and tensor.name == "token_embd.weight")
    )


def cache_bytes_per_token(header: GgufHeader, kv_type: KvType = "f16") -> int:
    """Return the bytes of the keys and values of one token in all layers. q8_0 has 34 bytes for 32 numbers."""
    block, width = next((block, width) for name, block, width in TENSOR_TYPES.values() if name == kv_type.upper())
    rows = (
        header.kv_heads[layer] * length
        for layer in header.attention_layers
        for length in (header.key_length, header.value_length)
    )
    return sum(-(-row // block) * width for row in rows)


def _state_bytes(header: GgufHeader) -> int:
    mamba = header.state_space
    return len(header.recurrent_layers) * (mamba.conv_bytes + mamba.state_bytes) if mamba else 0


def _compute_bytes(header: GgufHeader, context: int, slots: int, batch: int) -> int:
    """Return the peak of llama.cpp's compute buffer for a Granite, with the logits of ``slots`` tokens.

    The attention mask is in float16, all other values are in float32. At the peak, a dense layer holds gate, up and
    their product. A Mamba-2 layer holds its projection, the input and output of its convolution, its output, and the
    states before and after.
    """
    width, mamba = header.width, header.state_space
    values = 3 * max(header.feed_forward) + 5 * width
    if header.experts:
        values += header.experts_used * (3 * max(header.feed_forward) + 2 * width)
    largest = 4 * batch * values
    if mamba and header.recurrent_layers:
        projected = mamba.inner_size + mamba.channels + mamba.time_step_rank
        values = projected + 2 * mamba.channels + mamba.inner_size + 3 * width
        largest = max(largest, 4 * batch * values + slots * (2 * mamba.state_bytes + mamba.conv_bytes))
    return 2 * batch * context + largest + 4 * slots * len(header.vocabulary.tokens)
