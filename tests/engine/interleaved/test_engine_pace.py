"""Chunks of prompts by measured speed."""

from granite_demo.engine.interleaved.engine import FIRST, SMALLEST, PrefillPace


def measured(tokens: int, seconds: float) -> PrefillPace:
    pace = PrefillPace()
    pace.measured(tokens, seconds)
    return pace


def test_the_first_chunk_is_small() -> None:
    assert PrefillPace().size(2048, alone=True) == FIRST
    assert PrefillPace().size(8, alone=False) == 8


def test_a_chunk_takes_a_second_alone_and_a_quarter_in_company() -> None:
    pace = measured(64, 0.064)
    assert pace.size(2048, alone=True) == 1000
    assert pace.size(2048, alone=False) == 250


def test_a_chunk_is_never_larger_than_the_runner_takes_nor_tiny() -> None:
    assert measured(64, 0.001).size(2048, alone=False) == 2048
    assert measured(64, 60.0).size(2048, alone=True) == SMALLEST
    assert measured(64, 60.0).size(3, alone=True) == 3


def test_the_latest_speed_counts() -> None:
    pace = measured(64, 0.064)
    pace.measured(1000, 2.0)
    assert pace.size(2048, alone=True) == 500


def test_the_end_of_a_prompt_tells_nothing() -> None:
    pace = measured(64, 0.064)
    pace.measured(SMALLEST - 1, 2.0)
    pace.measured(64, 0.0)
    assert pace.size(2048, alone=True) == 1000
