"""Tests for the rows of the suite ``page``."""

import pytest

from granite_demo.bench.measure import TimedAnswer, TimedRun
from granite_demo.bench.suites.page import API_WAY, BACKEND_WAY, ENGINE_WAY, PAGE_WAY, rows_of
from tests.bench.made_up import run_of


def test_the_cost_compares_with_the_engine_for_as_many_visitors() -> None:
    kinds = [
        ("generate", 1),
        (BACKEND_WAY, 1),
        (ENGINE_WAY, 1),
        (PAGE_WAY, 1),
        (ENGINE_WAY, 4),
        (PAGE_WAY, 4),
        (API_WAY, 4),
    ]
    samples = [
        [],
        [run_of(1.0, 2.0)],
        [run_of(1.0, 2.0), run_of(1.0, 2.0)],
        [run_of(1.5, 3.5), run_of(1.5, 3.5)],
        [run_of(1.0, 2.0, users=4)],
        [run_of(1.0, 2.25, users=4)],
        [run_of(1.0, 2.0 / 0.75 - 1 / 3, users=4)],
    ]
    rows = {(row.way, row.visitors): row for row in rows_of(kinds, samples)}
    assert ("generate", 1) not in rows
    assert rows[ENGINE_WAY, 1].rate.median == 10.0
    assert rows[ENGINE_WAY, 4].rate.median == 40.0
    assert rows[PAGE_WAY, 1].cost == pytest.approx(0.5)
    assert rows[PAGE_WAY, 4].cost == pytest.approx(0.2)
    assert rows[API_WAY, 4].cost == pytest.approx(0.25)
    assert rows[BACKEND_WAY, 1].cost is None
    assert rows[PAGE_WAY, 1].ttft.median == 1.5


def test_there_is_no_cost_if_answers_do_not_overlap() -> None:
    apart = TimedRun((TimedAnswer(11, 1.0, 2.0), TimedAnswer(11, 2.5, 3.5)))
    [engine, page] = rows_of([(ENGINE_WAY, 2), (PAGE_WAY, 2)], [[run_of(1.0, 2.0, users=2)], [apart]])
    assert engine.together is not None
    assert (page.together, page.cost) == (None, None)
    assert page.rate.median == pytest.approx(20 / 2.5)
