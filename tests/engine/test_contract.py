"""The behaviours in ``contract`` for every engine that runs on a CPU."""

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from granite_demo.engine.llama_cpp import LlamaEngine
from granite_demo.hub.sample import ensure_gguf
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models.gguf_header import read_header
from granite_demo.settings import Settings
from tests.engine import contract
from tests.engine.contract import BEHAVIOURS, Behaviour, Ground, Row
from tests.engine.llama_engines import MISSING, gguf_engine, same_words
from tests.engine.running import batching_engine, dynamic_engine, one_thread, static_engine
from tests.fakes import FakeEngine

OF_THE_FAKE = {
    contract.max_tokens_is_exact,
    contract.max_tokens_is_needed,
    contract.an_end_token_is_the_last,
    contract.a_cancel_in_the_middle_frees_the_engine_within_a_second,
    contract.closing_ends_all_with_an_error,
}


OF_POISON = {
    contract.an_exception_fails_one_request_only,
    contract.out_of_memory_fails_one_request_only,
    contract.not_a_number_fails_one_request_only,
}


def _gguf(loaded: LoadedModel, max_waiting: int) -> LlamaEngine:
    words = None
    if loaded.tokenizer is not None:
        file = ensure_gguf(Settings.resolve({}, {}).cache_dir, lambda *_: None, threading.Event())
        words = same_words(read_header(file).vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        return gguf_engine(loaded, Path(folder, "model.gguf"), words, max_waiting)


GGUF = Row(
    "llama.cpp",
    _gguf,
    long=400,
    skips=frozenset(
        {
            # Nothing can be put into the model of another process. test_llama_cpp has what fails there.
            *(behaviour.__name__ for behaviour in OF_POISON),
            # llama.cpp has one count of a token for prompt and answer, so a token of the prompt is present for good.
            # test_llama_cpp has the penalty for frequency and the bias.
            "penalties_and_bias_are_those_of_plain_arithmetic",
        }
    ),
)
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
    if row is GGUF:
        return [SKIP]
    return [pytest.mark.release] if (row.name, behaviour.__name__) in LONG else []


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
