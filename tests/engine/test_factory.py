"""Which engine is chosen, and the reasons for it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from granite_demo.engine import factory
from granite_demo.engine.batching.engine import BatchingEngine
from granite_demo.engine.factory import batching_problem, cache_tokens, create_engine
from granite_demo.engine.interleaved.engine import InterleavedEngine
from granite_demo.engine.kernels import eligibility, layer
from granite_demo.errors import ConfigurationError, UnsuitableEngineError
from granite_demo.loading.device import Placement
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.loading.tensor_parallel import Group
from granite_demo.models import catalogue
from granite_demo.models.config import Shape
from granite_demo.types.engine_kinds import BATCHING, ENGINES, STATIC, EngineKind, EngineName
from granite_demo.types.model_status import REQUESTED, Chosen, EngineSetup, Fact, MemoryUse
from tests.engine.running import answer, tiny_model
from tests.fakes import SOURCE
from tests.loaded import load_checkpoint
from tests.tinymodels import SHAPE, write_checkpoint

HYBRID = replace(SHAPE, attention_layers=1)
GPU = Placement("cuda", torch.bfloat16, "none", "flash_attention_3", None)
CPU = Placement("cpu", torch.float32, "none", "sdpa", None)


def loaded_on(placement: Placement, shape: Shape | None = SHAPE) -> LoadedModel:
    return replace(tiny_model(), placement=placement, shape=shape, context_length=8192)


class Engines:
    """Replaces the engines that need a GPU, and records which were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.closed: list[str] = []
        self.options: dict[str, Any] = {}
        self.arguments: tuple[Any, ...] = ()
        self.failures: dict[str, BaseException] = {}
        """The error of making or warming up an engine, by its name."""
        monkeypatch.setattr(factory, "BatchingEngine", self._make("batching"))
        monkeypatch.setattr(factory, "StaticRunner", self._make("static"))
        monkeypatch.setattr(factory, "DynamicRunner", self._make("dynamic"))
        monkeypatch.setattr(factory, "InterleavedEngine", FakeInterleaved)
        monkeypatch.setattr(factory, "free_memory", lambda device: 10**9)

    def _make(self, name: str) -> Any:
        engines = self

        class Fake:
            slots = 4
            details: tuple[Fact, ...] = ()

            def __init__(self, loaded: LoadedModel, *arguments: Any, **options: Any) -> None:
                self.setup = options.get("setup")
                engines.made.append(name)
                engines.options, engines.arguments = options, arguments
                if isinstance(engines.failures.get(name), MemoryError | ValueError):
                    raise engines.failures[name]

            def warm_up(self) -> int:
                if name in engines.failures:
                    raise engines.failures[name]
                return 12

            def close(self) -> None:
                engines.closed.append(name)

        return Fake


class FakeInterleaved:
    def __init__(self, runner: Any, eos_ids: frozenset[int], setup: EngineSetup) -> None:
        self.runner = runner
        self.setup = setup

    def warm_up(self) -> None:
        self.runner.warm_up()

    def close(self) -> None:
        self.runner.close()


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    return Engines(monkeypatch)


def chosen(engine: Any) -> tuple[str, str]:
    """Return the name of the engine and the reason for the choice."""
    kind = engine.setup.kind
    return kind.value.name, kind.reason


def test_fused_layers_batch_without_flash_attention(engines: Engines) -> None:
    loaded = loaded_on(replace(GPU, attention="sdpa"))
    layer.fuse(loaded.model, SimpleNamespace(PagedAttention=lambda *_: None))
    assert chosen(create_engine(loaded)) == ("batching", "a GPU, and a model with attention in every layer")


def test_a_gpu_with_flash_attention_gets_batching(engines: Engines) -> None:
    engine: Any = create_engine(loaded_on(GPU))
    assert chosen(engine) == ("batching", "a GPU, and a model with attention in every layer")
    assert engines.made == ["batching"]
    assert engines.options["requests"] == 64
    assert engines.options["compile_level"] == 0
    assert [fact[:2] for fact in engine.setup.facts(engine.details)] == [
        ("Engine", "batching, up to 64 requests in a step"),
        ("KV cache", "262,144 tokens, 0.0 GB"),
        ("Decoding", "12 CUDA graphs"),
        ("Compiled", "no"),
        ("Layers", "as transformers computes them"),
    ]


def test_compiling_is_asked_for(engines: Engines) -> None:
    said: list[str] = []
    engine = create_engine(loaded_on(GPU), None, True, lambda stage, fraction, detail: said.append(detail))
    assert engines.options["compile_level"] == 1
    assert engine.setup.compiled == Chosen(True, REQUESTED, "yes")
    assert said == ["compiling the decode step, about a minute"]


def test_fused_layers_are_not_compiled(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("granite_demo.engine.factory._fuse", lambda loaded, unwanted, group: unwanted)
    engine = create_engine(loaded_on(GPU), None, True)
    assert engines.options["compile_level"] == 0
    assert engine.setup.fused == eligibility.fusion("")
    assert engine.setup.compiled == Chosen(False, "the layers are fused, which is faster", "no")
    create_engine(loaded_on(GPU), None, True, fuse=False)
    assert engines.options["compile_level"] == 1


@pytest.mark.parametrize(
    ("placement", "shape", "expected"),
    [
        (
            replace(GPU, attention="sdpa"),
            SHAPE,
            ("static", "not batching: it needs fused layers or FlashAttention 2 or 3"),
        ),
        (
            replace(GPU, attention="flash_attention_4"),
            SHAPE,
            ("static", "not batching: it needs fused layers or FlashAttention 2"),
        ),
        (replace(GPU, quantization="int8"), SHAPE, ("static", "not batching: LLM.int8 waits for the GPU")),
        (GPU, HYBRID, ("static", "not batching: it needs attention in every layer")),
        (GPU, None, ("static", "not batching: the shape of the model is unknown")),
        (replace(GPU, spread=True), SHAPE, ("dynamic", "not batching: the layers are spread over several GPUs")),
        (CPU, SHAPE, ("dynamic", "on cpu requests take turns")),
        (replace(CPU, device="mps"), SHAPE, ("dynamic", "on mps requests take turns")),
    ],
)
def test_other_machines_and_models(
    engines: Engines, placement: Placement, shape: Shape | None, expected: tuple[str, str]
) -> None:
    name, reason = chosen(create_engine(loaded_on(placement, shape)))
    assert (name, reason[: len(expected[1])]) == expected
    assert engines.made == [name]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError("Memory footprint 7 is more"), "its cache does not fit"),
        (torch.OutOfMemoryError("CUDA out of memory"), "its cache does not fit"),
        (UnsuitableEngineError("its steps cannot be captured"), "its steps cannot be captured"),
    ],
)
def test_what_batching_cannot_run_falls_to_static_with_the_reason(
    engines: Engines, error: BaseException, reason: str
) -> None:
    engines.failures["batching"] = error
    assert chosen(create_engine(loaded_on(GPU))) == ("static", f"not batching: {reason}")
    assert engines.made == ["batching", "static"]
    if not isinstance(error, MemoryError):  # it was made
        assert engines.closed == ["batching"]
    with pytest.raises(ConfigurationError, match=f"The batching engine was requested, but {reason}"):
        create_engine(loaded_on(GPU), BATCHING)


def test_what_static_cannot_run_falls_to_dynamic_with_both_reasons(engines: Engines) -> None:
    engines.failures["static"] = ValueError("it has layers of another kind")
    name, reason = chosen(create_engine(loaded_on(GPU, HYBRID)))
    assert name == "dynamic"
    assert reason.startswith("not batching: it needs attention in every layer")
    assert reason.endswith("; not static: it has layers of another kind")
    with pytest.raises(ConfigurationError, match="The static engine was requested, but it has layers of another kind"):
        create_engine(loaded_on(GPU, HYBRID), STATIC)


@pytest.mark.parametrize("name", ["batching", "static", "dynamic"])
def test_what_was_asked_for_is_made(engines: Engines, name: str) -> None:
    assert chosen(create_engine(loaded_on(GPU), ENGINES[name])) == (name, "requested")
    assert engines.made == [name]


@pytest.mark.parametrize("name", ["batching", "static", "dynamic"])
def test_an_engine_that_fails_for_another_reason_is_closed(engines: Engines, name: str) -> None:
    engines.failures[name] = ZeroDivisionError("broken")
    with pytest.raises(ZeroDivisionError):
        create_engine(loaded_on(GPU), ENGINES[name])
    assert engines.closed == [name]


def test_batching_that_was_asked_for_is_refused_with_what_to_do(engines: Engines) -> None:
    with pytest.raises(ConfigurationError, match="Mamba layers. Choose another engine, or auto."):
        create_engine(loaded_on(GPU, HYBRID), BATCHING)
    assert engines.made == []


def test_a_hybrid_checkpoint_is_refused(tmp_path: Any) -> None:
    folder = write_checkpoint(tmp_path / "model", "hybrid", torch.float32)
    hybrid = load_checkpoint(folder, spec=catalogue.SAMPLE)
    with pytest.raises(ConfigurationError, match="Mamba layers"):
        create_engine(hybrid, BATCHING)


def test_which_models_of_the_registry_batch() -> None:
    for spec in catalogue.MODELS.values():
        assert bool(batching_problem(loaded_on(GPU, spec.shape))) == bool(spec.shape and spec.shape.mamba), spec.name


@pytest.mark.parametrize(
    ("placement", "free", "tokens"),
    [
        (GPU, 10**12, 64 * 4096),
        (CPU, 10**12, 8 * 4096),
        # 2 layers x 2 heads x 8 x 2 bytes, of keys and of values: 128 bytes a token.
        (GPU, 128 * 10_000, 7936),
        (GPU, 0, 256),
    ],
)
def test_the_cache_is_what_users_need_within_the_memory(placement: Placement, free: int, tokens: int) -> None:
    assert cache_tokens(loaded_on(placement), free) == tokens


def test_a_long_context_has_room_twice() -> None:
    assert cache_tokens(replace(loaded_on(GPU), context_length=200_000), 10**12) == 400_000 // 256 * 256


@pytest.mark.parametrize(("size", "slots"), [(10**8, 4), (2 * 10**8, 2), (10**9, 1)])
def test_static_caches_are_as_many_as_fit_into_half_of_it(engines: Engines, size: int, slots: int) -> None:
    memory = MemoryUse("cuda", weights=1, kv_cache=size, free=10**9)
    create_engine(replace(loaded_on(GPU), memory=memory), STATIC)
    assert engines.arguments == (slots,)


def test_several_processes_share_a_batching_engine(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(2)
    monkeypatch.setattr(group, "least", lambda number: number // 4)
    expected = {"cpu": 2.5e8 * 0.8 / 256, "cuda": 2.5e8 * 0.8 / 64}  # bytes of a token, in half precision on the GPU
    for placement in (CPU, GPU):
        loaded = loaded_on(replace(placement, processes=2))
        loaded = replace(loaded, context_length=10**7)
        engine = create_engine(loaded, group=group)
        assert chosen(engine) == ("batching", "the only engine for several processes")
        assert engines.options["group"] is group
        tokens = engines.options["cache_tokens"]
        assert tokens == min(expected[placement.device] // 256 * 256, 2 * 10**7 if placement is GPU else 8 * 4096)


async def test_the_sample_runs_on_each_engine_of_a_cpu(sample: LoadedModel) -> None:
    engines = {"auto": InterleavedEngine, "dynamic": InterleavedEngine, "batching": BatchingEngine}
    answers = []
    for name, kind in engines.items():
        engine = create_engine(sample, ENGINES.get(name))
        assert isinstance(engine, kind)
        answers.append(await answer(engine, [1, 2, 3], max_tokens=5))
        engine.close()
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    ("placement", "reason"),
    [
        (replace(CPU, device="mps"), "it does not run on Apple's GPU"),
        (replace(GPU, spread=True), "the layers are spread over several GPUs"),
    ],
)
def test_batching_is_refused_where_it_cannot_run(engines: Engines, placement: Placement, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        create_engine(loaded_on(placement), BATCHING)


@pytest.mark.parametrize("kind", [kind for kind in ENGINES.values() if not kind.borrows_gpu], ids=str)
def test_files_that_an_engine_does_not_run_are_refused(engines: Engines, kind: EngineKind) -> None:
    of_gguf = tiny_model(source=replace(SOURCE, gguf=Path("a.gguf")))
    with pytest.raises(ConfigurationError, match=f"The {kind} engine was requested, but it cannot run these files"):
        create_engine(tiny_model() if kind.reads_gguf else of_gguf, kind)
    assert engines.made == []


def test_both_halves_of_the_table_have_the_same_engines() -> None:
    of_torch = {name: kind for name, kind in ENGINES.items() if not kind.reads_gguf}
    assert {row.kind.name: row.kind for row in factory._ROWS} == of_torch
    assert get_args(EngineName) == ("auto", *ENGINES)
