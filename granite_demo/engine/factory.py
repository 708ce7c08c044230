"""Which engine runs a loaded model, and why. The one place that knows them all.

- batching: a GPU with FlashAttention and a model of full-attention layers; many requests in each step.
- static: any other GPU; requests take turns, a token is one CUDA graph.
- dynamic: a CPU, Apple's GPU, or layers spread over several GPUs; requests take turns.
- gguf: a GGUF file, on a CPU; requests take turns. ``gguf_files`` says when such a file is taken.
- zerogpu: a Space whose GPU is lent for the length of an answer.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from granite_demo.engine.batching.engine import BatchingEngine
from granite_demo.engine.batching.loop import PAGE
from granite_demo.engine.interleaved.dynamic import DynamicRunner
from granite_demo.engine.interleaved.engine import InterleavedEngine
from granite_demo.engine.interleaved.gguf import GgufRunner
from granite_demo.engine.interleaved.static import StaticRunner
from granite_demo.engine.kernels import eligibility, layer
from granite_demo.engine.protocol import Engine
from granite_demo.engine.zerogpu import ZeroGpuEngine, load_spaces
from granite_demo.errors import ConfigurationError, UnsuitableEngineError
from granite_demo.loading import gc as garbage
from granite_demo.loading.llama_cpp import LlamaFile
from granite_demo.loading.load import LoadedModel
from granite_demo.loading.placement import free_memory, is_out_of_memory, precision_of
from granite_demo.loading.tensor_parallel import ALONE, Group
from granite_demo.models.memory import PREFILL_TOKENS, kv_bytes_per_token
from granite_demo.types.engine_kinds import BATCHING, DYNAMIC, GGUF, STATIC, ZEROGPU, EngineKind
from granite_demo.types.load_options import EngineName, Report
from granite_demo.types.model_status import ASKED, Chosen, EngineSetup, gigabytes

log = logging.getLogger(__name__)

USERS = 64
"""Requests in one step on a GPU."""
USERS_ON_CPU = 8
USUAL_CONTEXT = 4096
"""Tokens of cache for each of them, should the GPU have that much room."""
CACHE_SHARE = 0.8
"""The part of the free memory that a cache may take; activations and graphs need the rest."""
KEPT_SHARE = 0.25
"""The part of the free memory that ended conversations may take on a CPU; running ones need the rest."""
SLOTS = 4
"""Conversations that a static cache has room for, where memory allows."""


def create_engine(
    loaded: LoadedModel,
    wanted: EngineName = "auto",
    compiled: bool = False,
    report: Report = lambda stage, fraction, detail: None,
    group: Group = ALONE,
    fuse: bool = True,
) -> Engine:
    """An engine that is warm and ready. Raises ConfigurationError for an engine that cannot run this model."""
    if isinstance(loaded.model, LlamaFile):
        return _gguf(loaded, compiled, report)
    if wanted == "gguf":
        raise ConfigurationError("The gguf engine was asked for, but no GGUF file was loaded. Choose auto.")
    if wanted == "zerogpu":
        reason = "the Space lends a GPU for the length of an answer"
        kind = Chosen(ZEROGPU, reason, "ZeroGPU, a process for each answer")
        return ZeroGpuEngine(loaded, load_spaces(), EngineSetup(kind, _not_compiling(compiled)))
    problem = batching_problem(loaded)
    if wanted == "batching" and problem:
        raise ConfigurationError(f"The batching engine was asked for, but {problem}. Choose another engine, or auto.")
    reasons: list[str] = [ASKED] if wanted != "auto" else []
    if group.size > 1:
        wanted, reasons = "batching", ["the only one that several processes can share"]
    on_gpu = loaded.placement.device == "cuda"
    unfused = _fuse(loaded, "" if fuse else ASKED, group)
    fused = eligibility.fusion(unfused) if on_gpu else None
    if wanted == "batching" or (wanted == "auto" and not problem and on_gpu):
        try:
            return _batching(loaded, compiled, report, reasons, group, fused)
        except Exception as error:
            if not isinstance(error, UnsuitableEngineError) and not is_out_of_memory(error):
                raise
            problem = str(error) if isinstance(error, UnsuitableEngineError) else "its cache does not fit"
            if wanted == "batching":
                raise ConfigurationError(f"The batching engine was asked for, but {problem}.") from error
            log.warning("The batching engine is not used: %s.", problem)
        garbage.collect()  # what it had allocated
    if wanted == "static" or (wanted == "auto" and on_gpu and not loaded.placement.spread):
        try:
            return _static(loaded, compiled, report, reasons or [f"not batching: {problem}"], fused)
        except ValueError as error:
            if wanted == "static":
                raise ConfigurationError(f"The static engine was asked for, but {error}.") from error
            problem = f"{problem}; not static: {error}"
    why = f"not batching: {problem}" if on_gpu else f"on {loaded.placement.device} requests take turns"
    return _dynamic(loaded, compiled, report, reasons or [why], fused)


def batching_problem(loaded: LoadedModel) -> str:
    """Why continuous batching cannot run this model here, as half a sentence, or nothing."""
    shape, placement = loaded.shape, loaded.placement
    if shape is None:
        return "the shape of the model is not known"
    if shape.attention_layers < shape.layers:
        return "it needs attention in every layer, and this model has Mamba layers"
    if placement.spread:
        return "the layers are spread over several GPUs"
    if placement.device == "mps":
        return "it does not run on Apple's GPU"
    if placement.device == "cuda" and not placement.attention.startswith(("flash_attention_2", "flash_attention_3")):
        return f"it needs FlashAttention 2 or 3 on a GPU, and the attention is {placement.attention}"
    if placement.quantization == "int8":
        return "LLM.int8 waits for the GPU within a step, which CUDA graphs do not allow"
    return ""


def cache_tokens(loaded: LoadedModel, free: int) -> int:
    """Tokens for the cache that all requests share: what 64 usual conversations or two long ones need, if it fits."""
    users = USERS if loaded.placement.device == "cuda" else USERS_ON_CPU
    wanted = max(2 * loaded.context_length, users * USUAL_CONTEXT)
    if loaded.placement.device != "cuda":
        # Attention is computed with one mask over the whole cache there.
        wanted = users * USUAL_CONTEXT
    return max(PAGE, min(wanted, int(CACHE_SHARE * free / _token_bytes(loaded))) // PAGE * PAGE)


def _compiling(asked: bool, fused: Chosen[bool] | None) -> Chosen[bool]:
    if fused is None:
        return Chosen(False, "only on a GPU", "no")
    if not asked:
        return Chosen(False, "not asked for; it takes a minute", "no")
    if fused.value:
        return Chosen(False, "the layers are fused, which is faster", "no")
    return Chosen(True, ASKED, "yes")


def _not_compiling(asked: bool) -> Chosen[bool] | None:
    return Chosen(False, "asked for, but only the batching engine compiles its steps", "no") if asked else None


def _fuse(loaded: LoadedModel, unwanted: str, group: Group) -> str:
    """Fuse the layers, or say why not."""
    problem = eligibility.fusion_problem(loaded) or unwanted
    if not problem:
        from granite_demo.engine.kernels import matvec

        # What one process cannot do, none does.
        problem = next(filter(None, group.gather(layer.trial(loaded.model, matvec))), "")
        if not problem:
            layer.fuse(loaded.model, matvec, USERS, group)
    return problem


def _batching(
    loaded: LoadedModel,
    compiled: bool,
    report: Report,
    reasons: list[str],
    group: Group,
    fused: Chosen[bool] | None,
) -> Engine:
    on_gpu, compiling = loaded.placement.device == "cuda", _compiling(compiled, fused)
    tokens = cache_tokens(loaded, group.least(free_memory(loaded.placement.device)))
    users = USERS if on_gpu else USERS_ON_CPU
    why = "; ".join(reasons) or f"a GPU with {loaded.placement.attention}, and attention in every layer"
    engine = BatchingEngine(
        loaded,
        cache_tokens=tokens,
        requests=users,
        prefill=PREFILL_TOKENS if on_gpu else PREFILL_TOKENS // 4,
        compile_level=int(compiling.value),
        setup=EngineSetup(Chosen(BATCHING, why, BATCHING.words(users)), compiling, fused),
        group=group,
    )
    words = "compiling the decode step, about a minute" if compiling.value else "capturing CUDA graphs"
    with _closed_if_it_fails(engine):
        report("warming up", None, words)
        graphs = engine.warm_up()
    size = f"{tokens:,} tokens, {gigabytes(tokens * _token_bytes(loaded))}"
    engine.details = (
        ("KV cache", size, "shared by all; a common beginning is kept once"),
        ("Decoding", f"{graphs} CUDA graphs", "a step is one launch") if graphs else ("Decoding", "eager", "no GPU"),
        *(eligibility.sums_facts(group) if fused and fused.value else ()),
    )
    return engine


def _token_bytes(loaded: LoadedModel) -> int:
    assert loaded.shape is not None
    whole = kv_bytes_per_token(loaded.shape, precision_of(loaded.placement.dtype, loaded.placement.quantization))
    # On a CPU the parts of all processes are in the same memory.
    return whole // loaded.placement.processes if loaded.placement.device == "cuda" else whole


def _static(
    loaded: LoadedModel, compiled: bool, report: Report, reasons: list[str], fused: Chosen[bool] | None
) -> Engine:
    slots = SLOTS
    if loaded.memory is not None and loaded.memory.kv_cache:
        fitting = int(CACHE_SHARE / 2 * free_memory(loaded.placement.device) / loaded.memory.kv_cache)
        slots = max(1, min(SLOTS, fitting))
    return _interleaved(loaded, StaticRunner(loaded, slots), STATIC, compiled, report, reasons, fused)


def _dynamic(
    loaded: LoadedModel, compiled: bool, report: Report, reasons: list[str], fused: Chosen[bool] | None
) -> Engine:
    runner = DynamicRunner(loaded, int(KEPT_SHARE * free_memory(loaded.placement.device)))
    return _interleaved(loaded, runner, DYNAMIC, compiled, report, reasons, fused)


def _gguf(loaded: LoadedModel, compiled: bool, report: Report) -> Engine:
    slots = SLOTS  # of a hybrid, whose states are small
    if loaded.memory is not None and loaded.memory.kv_cache:
        slots = max(1, min(SLOTS, int(KEPT_SHARE * loaded.memory.free / loaded.memory.kv_cache)))
    measures = not (loaded.threads and loaded.threads.asked)
    try:
        runner = GgufRunner(loaded.model, slots, loaded.context_length, torch.get_num_threads(), measures=measures)
    except BaseException:
        loaded.model.close()  # nobody else knows of it: its memory would never be given back
        raise
    return _interleaved(loaded, runner, GGUF, compiled, report, [loaded.placement.reasons["engine"]])


def _interleaved(
    loaded: LoadedModel,
    runner: StaticRunner | DynamicRunner | GgufRunner,
    kind: EngineKind,
    compiled: bool,
    report: Report,
    reasons: list[str],
    fused: Chosen[bool] | None = None,
) -> Engine:
    chosen = Chosen(kind, "; ".join(reasons), kind.words(runner.slots))
    engine = InterleavedEngine(runner, loaded.eos_ids, EngineSetup(chosen, _not_compiling(compiled), fused))
    with _closed_if_it_fails(engine):
        report("warming up", None, "")
        engine.warm_up()
    return engine


@contextmanager
def _closed_if_it_fails(engine: Engine) -> Iterator[None]:
    try:
        yield
    except BaseException:
        engine.close()
        raise
