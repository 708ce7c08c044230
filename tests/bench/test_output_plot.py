"""Tests for the picture of a report."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from granite_demo.bench import output
from tests.bench.made_up import report


def colours(path: Path) -> dict[object, int]:
    """Return the number of pixels of each colour."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width == output.PIXELS
        found = picture.convert("RGB").getcolors(maxcolors=10**6)
    return {colour: count for count, colour in found or ()}


def rgb(colour: str) -> object:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def test_every_bar_and_the_limit_are_drawn(tmp_path: Path) -> None:
    output.save(report(), tmp_path / "bench.png")
    found = colours(tmp_path / "bench.png")
    for colour, _ in (output.DOCUMENTED_BAR, output.GREEDY_BAR, output.SAMPLED_BAR, output.FOLLOW_UP_BAR):
        assert found.get(rgb(colour), 0) > 500
    assert found.get(rgb(output.LIMIT_COLOUR), 0) > 100


@pytest.mark.parametrize("suite", ["decode", "ttft", "neither"])
def test_a_suite_that_did_not_run_is_not_drawn(tmp_path: Path, suite: str) -> None:
    found = report()
    if suite != "decode":
        found.decode = None
    if suite != "ttft":
        found.ttft = ()
    output.save(found, tmp_path / "bench.png")
    assert (rgb(output.SAMPLED_BAR[0]) in colours(tmp_path / "bench.png")) == (suite == "decode")
    assert (rgb(output.FOLLOW_UP_BAR[0]) in colours(tmp_path / "bench.png")) == (suite == "ttft")


def test_bars_by_users() -> None:
    found = report().decode
    assert found is not None
    users, bars, limits = output.decode_bars(found)
    assert users == [1, 16]
    assert {name: [value and value.median for value in values] for name, (_, values) in bars.items()} == {
        "transformers, documented": [20.0, 320.0],
        "granite-demo, greedy": [30.0, 480.0],
        "granite-demo, sampled": [25.0, 400.0],
    }
    assert limits == [120.0, 1920.0]


def test_a_way_that_was_left_out_has_no_bar(tmp_path: Path) -> None:
    found = report()
    assert found.decode is not None
    found.decode = replace(
        found.decode, rows=tuple(row for row in found.decode.rows if not (row.documented and row.users == 16))
    )
    _, bars, _ = output.decode_bars(found.decode)
    assert bars["transformers, documented"][1][1] is None
    output.save(found, tmp_path / "bench.png")
