"""The fourth stage of opening a model: which engine runs it, and why. The only module that imports all engines.

- batching: a GPU with fused layers or FlashAttention, and a model of full-attention layers; many requests in each step.
- static: any other GPU; requests take turns, a token is one CUDA graph.
- dynamic: a CPU, Apple's GPU, or layers spread over several GPUs; requests take turns.
- zerogpu: a Space that has a GPU only during an answer.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from granite_demo.engine.batching.engine import BatchingEngine
from granite_demo.engine.batching.loop import FLASH_ATTENTION, PAGE
from granite_demo.engine.interleaved.dynamic import DynamicRunner
from granite_demo.engine.interleaved.engine import InterleavedEngine
from granite_demo.engine.interleaved.static import StaticRunner
from granite_demo.engine.kernels import eligibility, layer
from granite_demo.engine.protocol import Engine
from granite_demo.engine.zerogpu import ZeroGpuEngine, load_spaces
from granite_demo.errors import ConfigurationError, UnsuitableEngineError
from granite_demo.loading import gc as garbage
from granite_demo.loading.device import free_memory, is_out_of_memory
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.loading.placement import precision_of
from granite_demo.loading.tensor_parallel import ALONE, Group
from granite_demo.models.memory import PREFILL_TOKENS, kv_bytes_per_token
from granite_demo.types.engine_kinds import BATCHING, DYNAMIC, STATIC, ZEROGPU, EngineKind
from granite_demo.types.load_options import Report
from granite_demo.types.model_status import REQUESTED, Chosen, EngineSetup, gigabytes

log = logging.getLogger(__name__)

USERS_ON_GPU = 64
"""The maximum number of requests in a step on a GPU."""
USERS_ON_CPU = 8
CONTEXT_PER_USER = 4096
"""Tokens of cache for each of them, if they fit."""
CACHE_SHARE = 0.8
"""The part of the free memory for a cache; activations and graphs need the rest."""
KEPT_SHARE = 0.25
"""The part of the free memory for ended conversations on a CPU; running ones need the rest."""
MOST_SLOTS = 4
"""The maximum number of conversations in caches of a fixed size."""


@dataclass(frozen=True, slots=True)
class _Order:
    """The arguments for an engine."""

    loaded: LoadedModel
    reason: str
    """Why this engine was chosen."""
    compile: bool
    """Whether the user requested a compiled decode step."""
    fused: Chosen[bool] | None
    """Whether the layers are fused; None without a GPU."""
    report: Report
    group: Group

    def setup(self, kind: EngineKind, words: str) -> EngineSetup:
        """Return the choices for an engine that does not compile."""
        why = "requested, but only the batching engine compiles its steps"
        compiled = Chosen(False, why, "no") if self.compile else None
        return EngineSetup(Chosen(kind, self.reason, words), compiled, self.fused)


def _nothing(loaded: LoadedModel) -> str:
    return ""


def _on_gpu(loaded: LoadedModel) -> bool:
    return loaded.placement.device == "cuda"


@dataclass(frozen=True, slots=True)
class _Row:
    """When an engine is chosen, and how it is made. The texts are clauses, empty if there is nothing to say."""

    kind: EngineKind
    make: Callable[[_Order], Engine]
    """Make the engine. Raises UnsuitableEngineError if only this attempt shows that it cannot run the model."""
    suits: Callable[[LoadedModel], bool]
    """Whether ``auto`` considers it."""
    problem: Callable[[LoadedModel], str] = _nothing
    """Why it cannot run the model."""
    reason: Callable[[LoadedModel], str] = _nothing
    """Why ``auto`` chooses it, if no engine before it was rejected."""


def create_engine(
    loaded: LoadedModel,
    requested: EngineKind | None = None,
    compiled: bool = False,
    report: Report = lambda stage, fraction, detail: None,
    group: Group = ALONE,
    fuse: bool = True,
) -> Engine:
    """Return a warm engine: the ``requested`` one, or the first in ``_ROWS`` that can run the model.

    Raises ConfigurationError if the requested engine cannot run the model.
    """
    reason, problems = REQUESTED if requested else "", list[str]()
    if group.size > 1:
        requested, reason = BATCHING, "the only engine for several processes"
    unfused = _fuse(loaded, "" if fuse else REQUESTED, group)
    fused = eligibility.fusion(unfused) if _on_gpu(loaded) else None
    for row in _ROWS:
        considered = row.kind == requested if requested else row.suits(loaded)
        if not considered or row.kind.reads_gguf != bool(loaded.source.gguf):
            continue
        problem = row.problem(loaded)
        if not problem:
            why = reason or "; ".join(problems) or row.reason(loaded)
            try:
                return row.make(_Order(loaded, why, compiled, fused, report, group))
            except UnsuitableEngineError as error:
                problem = str(error)
                log.warning("The %s engine is not used: %s.", row.kind, problem)
            garbage.collect()  # what it had allocated
        if requested:
            raise ConfigurationError(
                f"The {requested} engine was requested, but {problem}. Choose another engine, or auto."
            )
        problems.append(f"not {row.kind}: {problem}")
    raise ConfigurationError(f"The {requested} engine was requested, but it cannot run these files. Choose auto.")


def batching_problem(loaded: LoadedModel) -> str:
    """Return why continuous batching cannot run this model here, as a clause; empty if it can."""
    shape, placement = loaded.shape, loaded.placement
    if shape is None:
        return "the shape of the model is unknown"
    if shape.attention_layers < shape.layers:
        return "it needs attention in every layer, and this model has Mamba layers"
    if placement.spread:
        return "the layers are spread over several GPUs"
    if placement.device == "mps":
        return "it does not run on Apple's GPU"
    if placement.device == "cuda" and not _attends_to_pages(loaded):
        return f"it needs fused layers or FlashAttention 2 or 3 on a GPU, and the attention is {placement.attention}"
    if placement.quantization == "int8":
        return "LLM.int8 waits for the GPU within a step, which CUDA graphs do not allow"
    if placement.quantization not in ("none", "nf4", "fp4"):
        return f"the kernels for {placement.quantization} are not known to work in its steps"
    return ""


def _attends_to_pages(loaded: LoadedModel) -> bool:
    return loaded.placement.attention.startswith(FLASH_ATTENTION) or layer.has_paged_attention(loaded.model)


def cache_tokens(loaded: LoadedModel, free: int) -> int:
    """Return the tokens of the shared cache: enough for 64 usual conversations or two long ones, if they fit."""
    # On a CPU attention is computed with one mask over the whole cache.
    wanted = (
        max(2 * loaded.context_length, USERS_ON_GPU * CONTEXT_PER_USER)
        if _on_gpu(loaded)
        else USERS_ON_CPU * CONTEXT_PER_USER
    )
    return max(PAGE, min(wanted, int(CACHE_SHARE * free / _token_bytes(loaded))) // PAGE * PAGE)


def _compiled(order: _Order) -> Chosen[bool]:
    if order.fused is None:
        return Chosen(False, "only on a GPU", "no")
    if not order.compile:
        return Chosen(False, "not requested; it takes a minute", "no")
    if order.fused.value:
        return Chosen(False, "the layers are fused, which is faster", "no")
    return Chosen(True, REQUESTED, "yes")


def _fuse(loaded: LoadedModel, unwanted: str, group: Group) -> str:
    """Fuse the layers, or return why not."""
    problem = eligibility.fusion_problem(loaded) or unwanted
    if not problem:
        from granite_demo.engine.kernels import matvec

        # If one process cannot fuse its layers, none does.
        problem = next(filter(None, group.gather(layer.trial(loaded.model, matvec))), "")
        if not problem:
            layer.fuse(loaded.model, matvec, USERS_ON_GPU, group)
    return problem


def _batching(order: _Order) -> Engine:
    loaded, group, compiled = order.loaded, order.group, _compiled(order)
    on_gpu = _on_gpu(loaded)
    tokens = cache_tokens(loaded, group.least(free_memory(loaded.placement.device)))
    users = USERS_ON_GPU if on_gpu else USERS_ON_CPU
    try:
        engine = BatchingEngine(
            loaded,
            cache_tokens=tokens,
            requests=users,
            prefill=PREFILL_TOKENS if on_gpu else PREFILL_TOKENS // 4,
            compile_level=int(compiled.value),
            setup=EngineSetup(Chosen(BATCHING, order.reason, BATCHING.words(users)), compiled, order.fused),
            group=group,
        )
        words = "compiling the decode step, about a minute" if compiled.value else "capturing CUDA graphs"
        with _closed_if_it_fails(engine):
            order.report("warming up", None, words)
            graphs = engine.warm_up()
    except Exception as error:
        if is_out_of_memory(error):
            raise UnsuitableEngineError("its cache does not fit") from error
        raise
    size = f"{tokens:,} tokens, {gigabytes(tokens * _token_bytes(loaded))}"
    engine.details = (
        ("KV cache", size, "shared by all; a common beginning is kept once"),
        ("Decoding", f"{graphs} CUDA graphs", "a step is one launch") if graphs else ("Decoding", "eager", "no GPU"),
        *(eligibility.sums_facts(group) if order.fused and order.fused.value else ()),
    )
    return engine


def _token_bytes(loaded: LoadedModel) -> int:
    assert loaded.shape is not None
    whole = kv_bytes_per_token(loaded.shape, precision_of(loaded.placement.dtype, loaded.placement.quantization))
    # On a CPU the parts of all processes are in the same memory.
    return whole // loaded.placement.processes if _on_gpu(loaded) else whole


def _static(order: _Order) -> Engine:
    loaded = order.loaded
    slots = _fitting_slots(loaded, int(CACHE_SHARE / 2 * free_memory(loaded.placement.device)))
    try:
        runner = StaticRunner(loaded, slots)
    except ValueError as error:
        raise UnsuitableEngineError(str(error)) from error
    return _interleaved(order, runner, STATIC)


def _dynamic(order: _Order) -> Engine:
    budget = int(KEPT_SHARE * free_memory(order.loaded.placement.device))
    return _interleaved(order, DynamicRunner(order.loaded, budget), DYNAMIC)


def _fitting_slots(loaded: LoadedModel, room: int) -> int:
    """Return how many conversations of the whole context fit into ``room`` bytes; ``MOST_SLOTS`` if unknown."""
    if loaded.memory is None or not loaded.memory.kv_cache:
        return MOST_SLOTS
    return max(1, min(MOST_SLOTS, room // loaded.memory.kv_cache))


def _interleaved(order: _Order, runner: StaticRunner | DynamicRunner, kind: EngineKind) -> Engine:
    engine = InterleavedEngine(runner, order.loaded.eos_ids, order.setup(kind, kind.words(runner.slots)))
    with _closed_if_it_fails(engine):
        order.report("warming up", None, "")
        engine.warm_up()
    return engine


def _zerogpu(order: _Order) -> Engine:
    order = replace(order, reason="the Space has a GPU only during an answer")
    return ZeroGpuEngine(order.loaded, load_spaces(), order.setup(ZEROGPU, "ZeroGPU, a process for each answer"))


@contextmanager
def _closed_if_it_fails(engine: Engine) -> Iterator[None]:
    try:
        yield
    except BaseException:
        engine.close()
        raise


_ROWS = (
    _Row(
        BATCHING,
        _batching,
        suits=_on_gpu,
        problem=batching_problem,
        reason=lambda loaded: "a GPU, and a model with attention in every layer",
    ),
    _Row(STATIC, _static, suits=lambda loaded: _on_gpu(loaded) and not loaded.placement.spread),
    _Row(
        DYNAMIC,
        _dynamic,
        suits=lambda loaded: True,
        reason=lambda loaded: f"on {loaded.placement.device} requests take turns",
    ),
    _Row(ZEROGPU, _zerogpu, suits=lambda loaded: False),
)
"""The other half of the table in ``types/engine_kinds.py``. ``auto`` tries the engines in this order."""
