"""The size of chunks from the measured speed."""

from granite_demo.engine.interleaved.engine import FIRST, SMALLEST, PrefillPace


def measured(tokens: int, seconds: float) -> PrefillPace:
    pace = PrefillPace()
    pace.record(tokens, seconds)
    return pace


def test_the_first_chunk_is_small() -> None:
    assert PrefillPace().size(2048, alone=True) == FIRST
    assert PrefillPace().size(8, alone=False) == 8


def test_a_chunk_takes_a_second_alone_and_a_quarter_with_others() -> None:
    pace = measured(64, 0.064)
    assert pace.size(2048, alone=True) == 1000
    assert pace.size(2048, alone=False) == 250


def test_a_chunk_has_a_minimum_and_a_maximum() -> None:
    assert measured(64, 0.001).size(2048, alone=False) == 2048
    assert measured(64, 60.0).size(2048, alone=True) == SMALLEST
    assert measured(64, 60.0).size(3, alone=True) == 3


def test_the_latest_speed_counts() -> None:
    pace = measured(64, 0.064)
    pace.record(1000, 2.0)
    assert pace.size(2048, alone=True) == 500


def test_the_end_of_a_prompt_is_ignored() -> None:
    pace = measured(64, 0.064)
    pace.record(SMALLEST - 1, 2.0)
    pace.record(64, 0.0)
    assert pace.size(2048, alone=True) == 1000
