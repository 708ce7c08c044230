"""Tests for the table of the suite ``limit``. Its figures need a GPU."""

import io

import pytest
import torch
from rich.console import Console

from granite_demo.bench import fused_layers
from granite_demo.bench.fused_layers import LimitRow
from granite_demo.bench.measure import Spread
from granite_demo.bench.options import BenchOptions
from granite_demo.errors import ConfigurationError


def shown(*rows: LimitRow) -> str:
    output = io.StringIO()
    Console(file=output, width=160).print(fused_layers.table_of(rows))
    return output.getvalue()


def test_rates_and_times_are_shares_of_their_limits() -> None:
    two, four, one = (Spread.of([value]) for value in (2.0, 4.0, 1.0))
    text = shown(
        LimitRow("1 user", "tokens/s", four, two, one, 8.0),
        LimitRow("first token", "s", four, two, None, 1.0),
        LimitRow("set-up", "s", four, two, None, None),
    )
    rate, first, set_up = (line for line in text.splitlines() if line.startswith("│"))
    assert [cell.strip() for cell in rate.split("│")[1:-1]] == ["1 user", "tokens/s", "4.0", "2.0", "1.0", "8.0", "50%"]
    assert first.split("│")[-2].strip() == "25%"
    assert [cell.strip() for cell in set_up.split("│")[-4:-1]] == ["-", "-", "-"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_raises() -> None:
    def opener(report: object, cancelled: object, *, fuse: bool = True) -> None:
        raise AssertionError("the model was loaded before the check")

    with pytest.raises(ConfigurationError, match="need a CUDA GPU"):
        fused_layers.run(opener, BenchOptions(suites=("limit",)), lambda text: None)  # type: ignore[arg-type]
