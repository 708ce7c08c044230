"""Tests for the rows of the suite ``decode``."""

import pytest

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.bench import baselines
from granite_demo.bench.measure import TimedAnswer, TimedRun
from granite_demo.bench.options import BenchSizes
from granite_demo.bench.suites import decode
from tests.bench.made_up import KV_BYTES, CountingEngine, loaded, report, row, run_of

SIZES = BenchSizes(users=(1,), tokens=10, prompt=20, lengths=(), rounds=3)


def case(users: int = 1) -> decode.Case:
    return decode.Case("a way", users, "greedy", loaded(), False, lambda prompts, tokens: run_of(0, 1))


def test_a_row_has_medians_and_the_share_of_the_limit() -> None:
    runs = [run_of(1.0, 2.0), run_of(1.0, 3.0), run_of(2.0, 6.0)]
    found = decode.row_of(case(), runs, SIZES, speed=1e6)
    assert found.rate.values == (10.0, 5.0, 2.5)
    assert found.rate.median == 5.0
    assert found.ttft.median == 1.0
    # The average length of the cache: 20 tokens of the prompt and half of the 10 of the answer.
    assert found.limit == pytest.approx(1e6 / (10_000 + 25 * KV_BYTES))
    assert found.share == pytest.approx(5.0 / 1e6 * (10_000 + 25 * KV_BYTES))


def test_a_row_has_the_most_requests_that_waited() -> None:
    runs = [TimedRun(run_of(1.0, 2.0).answers, queued) for queued in (0, 3, 2)]
    assert decode.row_of(case(4), runs, SIZES, 1e6).queued == 3


def test_a_row_has_the_evenness_of_the_users() -> None:
    runs = [TimedRun((TimedAnswer(11, 0.0, 1.0), TimedAnswer(11, 0.0, last))) for last in (1.0, 2.0, 5.0)]
    assert decode.row_of(case(2), runs, SIZES, 1e6).evenness == pytest.approx(0.5)
    assert decode.row_of(case(), [run_of(0.0, 1.0)], SIZES, 1e6).evenness is None


def test_on_a_gpu_there_is_a_compiled_way_for_one_user() -> None:
    ready, copy = ReadyModel(loaded(), CountingEngine()), loaded(device="cuda")
    assert [case.way for case in decode.cases_of(ready, [copy], 1)][:2] == [baselines.GENERATE, baselines.STATIC_WAY]
    assert baselines.STATIC_WAY not in [case.way for case in decode.cases_of(ready, [copy], 2)]


def test_there_is_one_note_for_each_number_of_users() -> None:
    rows = [row("a way", 1, 9.0), row("a way", 16, 9.0, queued=8), row("another way", 16, 9.0, queued=12)]
    assert decode.waiting_notes(rows) == ["Of 16 users, up to 12 waited in the queue."]


def test_the_engine_is_measured_greedy_and_sampled() -> None:
    engine = CountingEngine()
    ready = ReadyModel(loaded(), engine)
    cases = decode.cases_of(ready, [loaded()], 2)
    assert [(case.way, case.choice, case.documented) for case in cases] == [
        ("generate_batch", "greedy", True),
        ("granite-demo", "greedy", False),
        ("granite-demo", "sampled", False),
    ]
    for own in cases[1:]:
        own.run([[1], [2]], 3)
    assert [sampling.temperature for _, sampling in engine.requests] == [0, 0, 0.7, 0.7]
    assert {sampling.max_tokens for _, sampling in engine.requests} == {3}


def test_the_baseline_is_the_fastest_documented_way() -> None:
    found = report().decode
    assert found is not None
    base = found.baseline(16)
    assert base is not None
    assert (base.documented, base.precision, base.rate.median) == (True, "bfloat16", 320.0)
    assert found.baseline(4) is None
