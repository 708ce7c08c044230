"""Tests for requests that run at the same time."""

from dataclasses import replace

from granite_demo.bench.measure import GREEDY, SAMPLED, Prompts, ask
from tests.bench.made_up import CountingEngine


def test_all_requests_run_at_once_and_get_their_tokens() -> None:
    engine = CountingEngine()
    run = ask(engine, [[1], [2], [3]], replace(GREEDY, max_tokens=4))
    assert engine.most_running == 3
    assert [prompt for prompt, _ in engine.requests] == [[1], [2], [3]]
    assert [answer.ids for answer in run.answers] == [(1, 2, 3, 4)] * 3
    assert all(0 < answer.first < answer.last for answer in run.answers)
    assert run.queued == 0


def test_waiting_requests_are_counted_and_queued_events_are_not_tokens() -> None:
    run = ask(CountingEngine(queued=True), [[1], [2]], replace(GREEDY, max_tokens=2))
    assert run.queued == 2
    assert run.tokens == 4


def test_each_request_has_a_different_seed() -> None:
    engine = CountingEngine()
    ask(engine, [[1], [2]], replace(SAMPLED, max_tokens=1, seed=5))
    assert [sampling.seed for _, sampling in engine.requests] == [5, 6]
    assert all(sampling.temperature == 0.7 and sampling.top_p == 0.9 for _, sampling in engine.requests)


def test_prompts_differ_and_a_seed_repeats_them() -> None:
    prompts = Prompts(1000, seed=1)
    first, second = prompts.many(2, 8)
    assert len(first) == len(second) == 8
    assert first != second
    assert all(0 <= token < 1000 for token in first)
    assert Prompts(1000, seed=1).one(8) == first
