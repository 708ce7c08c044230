"""Tests for medians, spreads and rates, and for the order of the turns."""

from functools import partial

import pytest

from granite_demo.bench.measure import Spread, TimedAnswer, TimedRun, Way, in_turns
from granite_demo.errors import EngineBusyError, EngineError


def test_a_spread_has_the_median_the_ends_and_the_samples_in_order() -> None:
    spread = Spread.of(iter([3.0, 1.0, 2.0, 10.0]))
    assert (spread.median, spread.low, spread.high, spread.values) == (2.5, 1.0, 10.0, (3.0, 1.0, 2.0, 10.0))


def test_the_rate_counts_from_the_first_token_of_all_to_the_last() -> None:
    run = TimedRun((TimedAnswer(11, first=1.0, last=5.0), TimedAnswer(21, first=3.0, last=7.0)))
    assert run.tokens == 32
    assert run.decode_rate == (10 + 20) / (7.0 - 1.0)


def test_the_time_to_first_token_is_the_median_over_the_users() -> None:
    assert TimedRun(tuple(TimedAnswer(2, first, 9.0) for first in (1.0, 2.0, 8.0))).ttft == 2.0


def test_the_rate_together_counts_only_the_time_when_all_generate() -> None:
    # Each gets 10 tokens/s while the other waits, and 5 while both generate, from 1.5 to 3 s.
    early = TimedAnswer(18, 0.5, 3.0, counts=((1.5, 11),))
    late = TimedAnswer(18, 1.5, 4.0, counts=((3.0, 8),))
    assert early.tokens_at(1.0) == 6
    assert early.tokens_at(9.0) == 18
    assert TimedRun((early, late)).together == pytest.approx((7 + 7) / 1.5)
    assert TimedRun((early,)).together == pytest.approx(17 / 2.5)
    assert TimedRun((early, TimedAnswer(2, 3.5, 4.0))).together is None


def test_one_token_is_too_short_to_measure() -> None:
    with pytest.raises(EngineError, match="--tokens"):
        _ = TimedRun((TimedAnswer(1, 2.0, 2.0),)).decode_rate


def test_an_answer_without_a_token_is_an_error() -> None:
    with pytest.raises(EngineError, match="without a token"):
        TimedAnswer(0, 0.0, 0.0)


def test_ways_are_warmed_up_and_then_take_turns() -> None:
    done: list[str] = []
    ways = [Way(name, partial(done.append, name), partial(done.append, f"warm {name}")) for name in "ab"]
    lines: list[str] = []
    turns = in_turns(ways, 2, lines.append, lambda: done.append("before"))
    assert done == ["warm a", "warm b", "before", "a", "b", "before", "a", "b"]
    assert lines == ["round 1 of 2", "round 2 of 2"]
    assert turns.samples == [[None, None], [None, None]]


def failing(error: Exception) -> Way[int]:
    def run() -> int:
        raise error

    return Way("the other way", run, may_fail=isinstance(error, ValueError))


@pytest.mark.parametrize("error", [ValueError("No.\nA long story."), EngineBusyError(64)])
def test_a_way_that_may_fail_is_left_out_with_its_reason(error: Exception) -> None:
    turns = in_turns([failing(error), Way("ours", lambda: 1)], 2)
    assert turns.samples == [[], [1, 1]]
    [reason] = turns.left_out
    assert reason.startswith(f"the other way failed: {type(error).__name__}: ")
    assert "long story" not in reason


def test_a_way_that_may_not_fail_ends_the_run() -> None:
    with pytest.raises(EngineError, match="broken"):
        in_turns([failing(EngineError("broken"))], 2)


def test_a_way_that_fails_later_loses_its_samples() -> None:
    calls = iter([1])
    turns = in_turns([Way("once", lambda: next(calls), may_fail=True)], 3)
    assert turns.samples == [[]]
    assert len(turns.left_out) == 1
