"""Tests for the tables on the terminal."""

import io

from rich.console import Console

from granite_demo.bench import tables
from granite_demo.bench.measure import Spread
from granite_demo.bench.suites.page import ENGINE_WAY, PAGE_WAY, PageRow, Startup
from tests.bench.made_up import report, spread


def shown(with_page: bool = False) -> str:
    found = report()
    if with_page:
        found.page = (
            PageRow(ENGINE_WAY, 1, spread(20.0), spread(0.1), spread(20.0), None),
            PageRow(PAGE_WAY, 1, spread(19.0), spread(0.2), spread(19.0), 0.05),
        )
        found.startup = Startup(1.0, 2.0, 3.0)
    console = Console(file=io.StringIO(), width=100)
    tables.show(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def cells(text: str, *words: str) -> list[str]:
    """Return the cells of the first row that contains all ``words``."""
    row = next(line for line in text.splitlines() if all(word in line for word in words))
    return [cell.strip() for cell in row.strip("│").split("│")]


def test_a_row_of_decode() -> None:
    assert cells(shown(), "16", "granite-demo", "greedy") == [
        "16", "granite-demo", "float32", "greedy", "480.0 (432.0-528.0)", "1.50", "1,920", "25%", "0.500 s", "80%",
    ]  # fmt: skip


def test_only_equal_sampling_is_compared() -> None:
    assert cells(shown(), "granite-demo", "sampled")[5] == "-"


def test_the_other_tables_and_the_notes() -> None:
    text = shown()
    assert cells(text, "weights") == ["weights", "0.54 GB"]
    assert cells(text, "8,192 tokens")[1] == "-"
    assert cells(text, "from_pretrained")[1] == "3.0 (2.7-3.3) s"
    assert cells(text, "1,024") == ["1,024", "-", "3.000 (2.700-3.300) s", "-", "0.200 (0.180-0.220) s"]
    assert cells(text, "128")[3] == "0.300 (0.270-0.330) s"
    assert "Not measured: 64 users" in text
    assert "Engine: counting (a test)" in text
    assert "made-up (not shown)" not in text
    assert "Measured in 64 s: load 3 s, decode 61 s." in text


def test_the_page() -> None:
    text = shown(with_page=True)
    assert cells(text, "page", "19.0") == ["1", PAGE_WAY, *["19.0 (17.1-20.9)"] * 2, "5.0%", "0.20 s"]
    assert "page after 1.0 s, model ready after 2.0 s, first token in the page after 3.0 s" in text
    assert "A server" not in shown()


def test_one_sample_has_no_spread() -> None:
    assert tables.spread(Spread.of([2.0]), 1) == "2.0"
