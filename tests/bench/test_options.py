"""Tests that the flags are parsed, and that mistakes raise before the measurement."""

import sys
from pathlib import Path
from typing import Any

import pytest

from granite_demo.bench.options import ON_CPU, ON_GPU, BenchOptions
from granite_demo.errors import ConfigurationError


def parse(**flags: Any) -> BenchOptions:
    values = dict.fromkeys(("suite", "users", "prompts", "tokens", "json_file", "plot_file"))
    return BenchOptions.parse(**{**values, "rounds": 3, **flags})


def test_suites_always_run_in_the_same_order() -> None:
    assert parse(suite="page, decode").suites == ("decode", "page")
    assert parse(suite="all").suites == ("load", "decode", "ttft", "page")
    assert parse().suites == ()


def test_users_are_sorted_and_distinct() -> None:
    assert parse(users="16,1, 4,1").users == (1, 4, 16)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"suite": "speed"}, "--suite must be limit, all, or a list of load, decode, ttft, page, not 'speed'"),
        ({"users": "0,4"}, "--users must be 1 or more, not 0"),
        ({"users": "many"}, "--users must be whole numbers like 1,4,16, not 'many'"),
        ({"prompts": "8"}, "--prompts must be 32 or more, not 8"),
        ({"json_file": "no/such/folder/out.json"}, "--json names a file in a folder that does not exist"),
        ({"plot_file": Path("no/such/folder/out.png")}, "--plot names a file in a folder that does not exist"),
    ],
)
def test_mistakes_name_the_flag(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(**flags)
    assert words in str(caught.value)


def test_a_picture_without_matplotlib_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert parse().plot_file is None
    with pytest.raises(ConfigurationError, match="pip install matplotlib"):
        parse(plot_file=Path("out.png"))


def test_sizes_are_those_of_the_device_by_default() -> None:
    assert parse().sizes("cpu") == ON_CPU
    assert parse().sizes("cuda") == ON_GPU
    sizes = parse(users="2", prompts="64", tokens=5, rounds=1).sizes("cuda:0")
    assert (sizes.users, sizes.lengths, sizes.tokens, sizes.rounds) == ((2,), (64,), 5, 1)


def test_the_suite_limit_runs_alone() -> None:
    assert parse(suite="limit").suites == ("limit",)
    with pytest.raises(ConfigurationError, match="runs alone"):
        parse(suite="limit, decode")
