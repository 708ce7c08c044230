"""Tests for the rows of the suite ``ttft``."""

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.bench.options import BenchSizes
from granite_demo.bench.suites import ttft
from tests.bench.made_up import CountingEngine, loaded, run_of


def test_lengths_leave_room_for_an_answer() -> None:
    assert ttft.fitting_lengths((128, 998, 999), 1000) == (
        (128, 998),
        ["Not measured: prompts of 999 tokens (the context has 1,000)."],
    )
    assert ttft.fitting_lengths((128,), 1000) == ((128,), [])


def test_a_row_has_the_medians() -> None:
    cold, follow_up = [run_of(first, 9.0) for first in (3.0, 1.0, 2.0)], [run_of(0.5, 9.0)]
    row = ttft.row_of(64, cold, follow_up)
    assert (row.cold.median, row.follow_up.median, row.documented) == (2.0, 0.5, None)
    assert ttft.row_of(64, cold, follow_up, []).documented is None
    documented = ttft.row_of(64, cold, follow_up, [run_of(4.0, 9.0)]).documented
    assert documented is not None
    assert documented.median == 4.0


def test_a_follow_up_begins_with_the_chat_before_it() -> None:
    engine = CountingEngine()
    sizes = BenchSizes(users=(), tokens=2, prompt=2, lengths=(40, 50, 2000), rounds=1)
    rows, notes = ttft.measure(ReadyModel(loaded(), engine), [], sizes, lambda text: None)
    assert [row.prompt_tokens for row in rows] == [40, 50]
    assert len(notes) == 1
    cold, chat, follow_up = (prompt for prompt, _ in engine.requests[:3])
    assert len(cold) == len(follow_up) == 40
    assert follow_up[: len(chat) + 8] == [*chat, *range(1, 9)]
    assert len(follow_up) - len(chat) - 8 == ttft.NEXT_TURN
    assert cold[:12] != follow_up[:12]
