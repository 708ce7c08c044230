"""The behaviours of ``tests/engine/contract``, of every engine that a GPU may have, as it is made there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from granite_demo.engine.batching.sampler import BatchSampler
from granite_demo.engine.interleaved.engine import InterleavedEngine
from granite_demo.engine.interleaved.static import StaticRunner
from granite_demo.engine.interleaved.static_steps import Sizes
from granite_demo.engine.kernels.layer import fuse
from granite_demo.loading.loaded_model import LoadedModel
from tests.bytetokens import byte_tokenizer
from tests.engine.contract import BEHAVIOURS, POISON, Behaviour, Effect, Ground, Row
from tests.engine.running import batching_engine, dynamic_engine
from tests.gpu.checkpoints import TEMPLATE
from tests.gpu.models import NOISE, small_model

pytestmark = pytest.mark.gpu


def _static(loaded: LoadedModel, max_waiting: int) -> InterleavedEngine:
    runner = StaticRunner(loaded, 4, sizes=Sizes(shortest=64, padded=(32, 128)))
    engine = InterleavedEngine(runner, loaded.eos_ids, max_waiting=max_waiting)
    engine.warm_up()
    return engine


@contextmanager
def poisoned_where_steps_are_captured(loaded: LoadedModel, effect: Effect) -> Iterator[None]:
    """A captured step calls no hooks: an exception comes from what prepares it, and other effects from the weights."""
    embedding = loaded.model.get_input_embeddings().weight[POISON]
    hit = torch.ones((1, 1), dtype=torch.bool, device=embedding.device)

    def embedded() -> torch.Tensor:
        with torch.no_grad():
            return effect(embedding[None, None], hit)[0, 0]

    prepare = BatchSampler.prepare_tensor_args

    def stumble(self: BatchSampler, requests_in_batch: Sequence[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        if any(POISON in request.state.initial_tokens for request in requests_in_batch):
            embedded()
        return prepare(self, requests_in_batch, arg_storage)

    with pytest.MonkeyPatch.context() as patch:
        try:
            changed = embedded()
        except Exception:
            patch.setattr(BatchSampler, "prepare_tensor_args", stumble)
        else:
            with torch.no_grad():
                embedding.copy_(changed)
        yield


def _fused(loaded: LoadedModel) -> LoadedModel:
    from granite_demo.engine.kernels import matvec

    fuse(loaded.model, matvec, 64)
    return loaded


ROWS = (
    Row("dynamic", lambda loaded, max_waiting: dynamic_engine(loaded, max_waiting=max_waiting), model=small_model),
    Row("static", _static, model=small_model),
    Row(
        "static in bfloat16",
        _static,
        model=partial(small_model, dtype="bfloat16"),
        noise=NOISE,
        # What is left of an earlier prompt is not read again, so the rest of it is read in smaller, other steps.
        skips=frozenset({"a_seed_repeats_and_another_differs", "company_does_not_change_a_sampled_answer"}),
    ),
    Row(
        "batching",
        lambda loaded, max_waiting: batching_engine(loaded, max_waiting=max_waiting, cache_tokens=32768),
        model=partial(small_model, dtype="bfloat16", attention="flash_attention_2"),
        noise=NOISE,
        poisoned=poisoned_where_steps_are_captured,
        # Beside others a row of a bfloat16 product may be rounded otherwise.
        skips=frozenset({"company_does_not_change_a_sampled_answer"}),
    ),
    Row("static, fused", lambda loaded, max_waiting: _static(_fused(loaded), max_waiting), model=small_model),
    Row(
        "batching in float32, fused",
        lambda loaded, max_waiting: batching_engine(_fused(loaded), max_waiting=max_waiting, cache_tokens=32768),
        model=small_model,
        poisoned=poisoned_where_steps_are_captured,
        skips=frozenset({"company_does_not_change_a_sampled_answer"}),
    ),
    Row(
        "batching, fused",
        lambda loaded, max_waiting: batching_engine(_fused(loaded), max_waiting=max_waiting, cache_tokens=32768),
        model=partial(small_model, dtype="bfloat16", attention="flash_attention_2"),
        noise=NOISE,
        poisoned=poisoned_where_steps_are_captured,
        skips=frozenset({"company_does_not_change_a_sampled_answer"}),
    ),
)
FLASH_ROWS = ("batching", "batching, fused")
FLASH = pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs flash-attn")
CASES = [
    pytest.param(row, behaviour, id=f"{row.name}-{behaviour.__name__}", marks=[FLASH] if row.name in FLASH_ROWS else [])
    for row in ROWS
    for behaviour in BEHAVIOURS
    if behaviour.__name__ not in row.skips
]


@pytest.fixture(scope="module")
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """The ground of one row. In the sample's place is a model that can read, and has room for a long prompt."""
    row: Row = request.param
    ground = Ground(row, row.model(vocabulary=300, context=16384, tokenizer=byte_tokenizer(TEMPLATE)))
    yield ground
    ground.close()


@pytest.mark.parametrize(("ground", "behaviour"), CASES, indirect=["ground"])
async def test_every_engine(ground: Ground, behaviour: Behaviour) -> None:
    await behaviour(ground)


@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "dynamic"], ids=lambda row: row.name)
def test_its_steps_are_captured(row: Row) -> None:
    if row.name in FLASH_ROWS and find_spec("flash_attn") is None:
        pytest.skip("needs flash-attn")
    engine: Any = row.make(row.model(), 64)
    if row.name.startswith("batching"):
        assert sum(len(io.graphs) for io in engine._loop._device_ios()) >= 8
    else:
        assert any(value.endswith("CUDA graphs") for _, value, _ in engine.facts), engine.facts
    engine.close()
