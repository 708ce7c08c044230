"""The third stage of opening a model, for a GGUF file: a source and a placement in, a loaded model out.

llama.cpp runs the file in a process of its own. Imports no torch by itself.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from granite_demo.errors import InvalidRequestError, LoadCancelledError, OutOfMemoryError
from granite_demo.hub.gguf import LEAST_CONTEXT
from granite_demo.loading.device import Placement, cores, free_memory
from granite_demo.loading.llama_process import LlamaProcess
from granite_demo.loading.llama_server import ServerOptions
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.loading.source import Source
from granite_demo.models.devices import DeviceMemory
from granite_demo.models.gguf_header import GgufHeader, read_header
from granite_demo.models.gguf_memory import BATCH, CACHE_MULTIPLE, cache_bytes_per_token, memory_of
from granite_demo.outputs.structured_output import prepare
from granite_demo.prompts.gguf_tokenizer import check_with_llama, make_tokenizer
from granite_demo.prompts.template_features import find_switches, unusable_parts
from granite_demo.types.load_options import KvCache, Report
from granite_demo.types.model_status import REQUESTED, MemoryUse

LLAMA_CACHE_SHARE = 0.25
"""The part of the free memory that the KV cache of all conversations may take."""
SLOT_RANGE = (4, 16)
"""Requests in one step, at least and at most."""
SLOT_TOKENS = 512
"""Tokens of the shared cache for each of them, on average."""


@dataclass(frozen=True, slots=True)
class CachePlan:
    """How the KV cache is divided."""

    context: int
    """Tokens of one conversation."""
    tokens: int
    """Tokens of the cache that all conversations share."""
    slots: int
    """Requests in one step."""
    reason: str
    """Why the context has this length."""


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A GGUF file that llama.cpp has loaded in a process of its own."""

    header: GgufHeader = field(repr=False)
    plan: CachePlan
    process: LlamaProcess
    start: Callable[[], LlamaProcess] = field(repr=False)
    """Starts another process with the same file. Raises CorruptModelError."""

    @property
    def vocabulary(self) -> int:
        """The number of logits."""
        return len(self.header.vocabulary.tokens)


def load_gguf(
    source: Source,
    placement: Placement,
    report: Report,
    cancelled: threading.Event,
    threads: int = 0,
    kv_cache: KvCache = "f16",
    gpu: DeviceMemory | None = None,
    single_user: bool = False,
) -> LoadedModel:
    """Load the GGUF file of ``source``; the file completes ``placement``. ``threads`` 0: one for each core.

    ``gpu`` is the device of a ``placement`` on CUDA. For a ``single_user``, the cache holds one conversation, and the
    first constrained answer waits for the preparation of constraints.

    Raises CorruptModelError, ModelError, OutOfMemoryError and LoadCancelledError.
    """
    assert source.gguf
    header = read_header(source.gguf)
    free = gpu.free if gpu and placement.device == "cuda" else free_memory("cpu")
    plan = plan_cache(header, placement.context, free, kv_cache, single_user)
    options = _server_options(header, plan, placement.device, threads, kv_cache)
    report("loading", None, source.gguf.name)
    process = LlamaProcess(options)
    try:
        # The child process loads the weights meanwhile.
        tokenizer = make_tokenizer(header, source.folder)
        notes = unusable_parts(tokenizer, len(header.vocabulary.tokens))
        switches = find_switches(tokenizer)
        if not single_user:
            with suppress(InvalidRequestError):
                prepare(tokenizer, header.vocabulary.end_ids)
        _wait_for(process, cancelled.is_set)
        check_with_llama(source.gguf.name, tokenizer, process.tokenize)
        if cancelled.is_set():
            raise LoadCancelledError("The load was cancelled.")
        conversation = plan.context * cache_bytes_per_token(header, kv_cache)
        reasons = {**placement.reasons, "quantization": "as the file has it", "context": plan.reason}
        return LoadedModel(
            model=GgufModel(header, plan, process, partial(_start, options)),
            tokenizer=tokenizer,
            source=source,
            placement=replace(placement, quantization=header.quantization, context=plan.context, reasons=reasons),
            context_length=plan.context,
            eos_ids=header.vocabulary.end_ids,
            weight_bytes=header.tensor_bytes,
            differences=notes,
            shape=source.spec.shape,
            memory=MemoryUse(placement.device, header.tensor_bytes, conversation, free),
            switches=switches,
        )
    except BaseException:
        process.close()
        raise


def _server_options(header: GgufHeader, plan: CachePlan, device: str, threads: int, kv_cache: KvCache) -> ServerOptions:
    return ServerOptions(
        path=str(header.files[0]),
        socket="",
        key="",
        context=plan.tokens,
        slots=plan.slots,
        threads=threads or cores(),
        gpu_layers=0 if device == "cpu" else -1,
        cache_type=kv_cache,
        batch=BATCH,
    )


def _start(options: ServerOptions) -> LlamaProcess:
    process = LlamaProcess(options)
    try:
        _wait_for(process)
    except BaseException:
        process.close()
        raise
    return process


def _wait_for(process: LlamaProcess, stop: Callable[[], bool] = lambda: False) -> None:
    """Wait until the model answers. Raises as ``LlamaProcess.wait``."""
    process.wait(stop)
    process.warm_up()


def plan_cache(
    header: GgufHeader, wanted: int | None, free: int, kv_cache: KvCache = "f16", single_user: bool = False
) -> CachePlan:
    """Divide the KV cache within ``free`` bytes. ``wanted``: tokens of one conversation, None for the file's own limit.

    Raises OutOfMemoryError where the weights or a short conversation do not fit.
    """
    limit = min(wanted or header.context_length, header.context_length)

    def needed(tokens: int, slots: int = SLOT_RANGE[0]) -> int:
        memory = memory_of(header, tokens, slots, kv_cache)
        return memory.total - memory.repacked  # the weights that were copied leave memory

    least = needed(LEAST_CONTEXT)
    fits = LEAST_CONTEXT + (free - least) * LEAST_CONTEXT / (needed(2 * LEAST_CONTEXT) - least)
    if each := cache_bytes_per_token(header, kv_cache):
        fits = min(fits, LLAMA_CACHE_SHARE * free / each)
    together = int(fits) // CACHE_MULTIPLE * CACHE_MULTIPLE
    if together < LEAST_CONTEXT:
        raise OutOfMemoryError("The model and a conversation do not fit in memory. Choose a smaller model.")
    context = min(limit, together)
    reason = REQUESTED if wanted else "the limit of the file"
    if context < limit:
        reason = f"what fits into {LLAMA_CACHE_SHARE:.0%} of the free memory"
    slots = max(
        SLOT_RANGE[0], min(SLOT_RANGE[1], max(context, min(together, SLOT_RANGE[1] * SLOT_TOKENS)) // SLOT_TOKENS)
    )
    tokens = context if single_user else max(context, min(together, slots * SLOT_TOKENS))
    while slots > SLOT_RANGE[0] and needed(tokens, slots) > free:
        slots -= 1  # each has a state for every Mamba layer
    return CachePlan(context, tokens, slots, reason)
