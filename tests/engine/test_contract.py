"""The behaviours in ``contract`` for every engine that runs on a CPU."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from granite_demo.engine.interleaved.engine import InterleavedEngine
from granite_demo.loading.load import LoadedModel
from tests.engine import contract
from tests.engine.contract import BEHAVIOURS, Behaviour, Ground, Row
from tests.engine.gguf_writing import MISSING, gguf_engine
from tests.engine.running import batching_engine, dynamic_engine, one_thread, static_engine
from tests.fakes import FakeEngine

OF_THE_FAKE = {
    contract.max_tokens_is_exact,
    contract.max_tokens_is_needed,
    contract.an_end_token_is_the_last,
    contract.a_cancel_in_the_middle_frees_the_engine_within_a_second,
    contract.closing_ends_all_with_an_error,
}


def _gguf(loaded: LoadedModel, max_waiting: int) -> InterleavedEngine:
    with tempfile.TemporaryDirectory() as folder:
        return gguf_engine(loaded, Path(folder), max_waiting=max_waiting)


GGUF = Row("interleaved on llama.cpp", _gguf)
ROWS = (
    Row(
        "fake",
        lambda loaded, max_waiting: FakeEngine(range(100), eos_ids=loaded.eos_ids),
        skips=frozenset(behaviour.__name__ for behaviour in BEHAVIOURS if behaviour not in OF_THE_FAKE),
    ),
    Row("interleaved on growing caches", lambda loaded, max_waiting: dynamic_engine(loaded, max_waiting=max_waiting)),
    Row("interleaved on static caches", lambda loaded, max_waiting: static_engine(loaded, max_waiting=max_waiting)),
    Row(
        "batching",
        lambda loaded, max_waiting: batching_engine(loaded, max_waiting=max_waiting),
        # Without FlashAttention, all requests share one mask, in which a masked NaN stays NaN.
        skips=frozenset({"not_a_number_fails_one_request_only"}),
    ),
    GGUF,
)
SKIP = pytest.mark.skipif(bool(MISSING), reason=MISSING)
LONG = {
    ("interleaved on static caches", "greedy_equals_generate"),
    ("interleaved on static caches", "log_probabilities_equal_a_forward_pass"),
}
"""Slow on a CPU. The same loop with growing caches, and tests of the runner, cover these."""


def _marks(row: Row, behaviour: Behaviour) -> list[pytest.MarkDecorator]:
    slow = [pytest.mark.release] if (row.name, behaviour.__name__) in LONG else []
    return [SKIP] if row is GGUF else slow


CASES = [
    pytest.param(row, behaviour, id=f"{row.name}-{behaviour.__name__}", marks=_marks(row, behaviour))
    for row in ROWS
    for behaviour in BEHAVIOURS
    if behaviour.__name__ not in row.skips
]


@pytest.fixture(scope="module")
def ground(request: pytest.FixtureRequest, sample: LoadedModel) -> Iterator[Ground]:
    """The ground of one row, with its engine for the sample."""
    with one_thread():
        ground = Ground(request.param, sample)
        yield ground
        ground.close()


@pytest.mark.parametrize(("ground", "behaviour"), CASES, indirect=["ground"])
async def test_every_engine(ground: Ground, behaviour: Behaviour) -> None:
    await behaviour(ground)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_only_behaviours_are_skipped(row: Row) -> None:
    assert row.skips <= {behaviour.__name__ for behaviour in BEHAVIOURS}
