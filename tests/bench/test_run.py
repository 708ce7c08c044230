"""Tests for the choice of the suites, and one run of all suites with the sample model on its default engine."""

import sys
from functools import partial
from pathlib import Path

import pytest

from granite_demo.backends.model_manager import ModelManager
from granite_demo.backends.open_model import open_model
from granite_demo.bench import baselines
from granite_demo.bench import run as suites
from granite_demo.bench.options import SUITES, BenchOptions
from granite_demo.bench.report import BenchReport
from granite_demo.bench.suites.load import StageClock
from granite_demo.errors import ConfigurationError
from granite_demo.types.load_options import Dtype, LoadOptions

SMALL, LARGE = 10**9, 10**10


def test_a_small_model_is_measured_in_full() -> None:
    assert suites.choose_suites((), SMALL) == (SUITES, "")


def test_a_large_model_is_measured_without_the_page_unless_asked() -> None:
    chosen, note = suites.choose_suites((), LARGE)
    assert chosen == ("load", "decode", "ttft")
    assert "--suite page" in note
    assert suites.choose_suites(("page",), LARGE) == (("page",), "")


def test_the_page_is_left_out_if_its_packages_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    suites.check_packages(("page",))
    monkeypatch.setitem(sys.modules, "gradio", None)
    chosen, note = suites.choose_suites((), SMALL)
    assert chosen == ("load", "decode", "ttft")
    assert note == "The page was not measured: gradio is not installed."
    suites.check_packages(("decode",))
    with pytest.raises(ConfigurationError, match="pip install gradio"):
        suites.check_packages(("page",))


def run(cache: Path, suite: str, dtype: Dtype = "auto") -> BenchReport:
    clock = StageClock()
    load_options = LoadOptions(model="sample", device="cpu", dtype=dtype)
    options = BenchOptions.parse(suite, "1,2", "32", 3, 1, None, None)
    loader = partial(open_model, cache, 0, ignore_ends=True)
    serve = ["--model", "sample", "--device", "cpu", "--dtype", dtype, "--cache-dir", str(cache)]
    manager = ModelManager(loader, clock)
    try:
        return suites.run(manager, load_options, clock, options, serve)
    finally:
        manager.close()


@pytest.mark.release
@pytest.mark.parametrize(
    ("dtype", "label", "weights", "bare"),
    [("auto", "Q4_1", 98_362_432, [baselines.LLAMA]), ("float32", "float32", 4 * 134_515_008, [])],
)
def test_the_engine_on_the_sample(
    gguf_path: Path, sample_path: Path, dtype: Dtype, label: str, weights: int, bare: list[str]
) -> None:
    report = run(sample_path.parent, "load,decode,ttft", dtype)
    assert [note for note in report.notes if "waited in the queue" not in note] == []
    assert set(report.seconds) == {"load", "decode", "ttft"}
    assert report.load is not None
    assert report.load.load.median > 0
    assert (report.load.warm_up.median > 0) is (not bare), "llama.cpp warms up while it loads"
    assert report.load.weights == pytest.approx(weights, rel=0.03)
    assert report.decode is not None
    rows = [(row.users, row.way, row.precision, row.choice) for row in report.decode.rows]
    expected: list[tuple[int, str, str, str]] = []
    for users, way in ((1, "generate + TextIteratorStreamer"), (2, "generate_batch")):
        expected += [(users, way, precision, "greedy") for precision in ("float32", "bfloat16")]
        expected += [(users, loop, label, "greedy") for loop in bare]
        expected += [(users, "granite-demo", label, choice) for choice in ("greedy", "sampled")]
    assert rows == expected
    assert all(row.rate.median > 0 and row.ttft.median > 0 and row.share for row in report.decode.rows)
    [row] = report.ttft
    assert row.prompt_tokens == 32
    documented = [row.documented, row.documented_follow_up]
    assert [one is not None for one in documented] == [not bare] * 2
    assert min(one.median for one in (row.cold, row.follow_up, *documented) if one) > 0


@pytest.mark.release
def test_the_page_on_the_sample(gguf_path: Path, sample_path: Path) -> None:
    report = run(sample_path.parent, "page")
    assert report.load is None
    assert [(row.visitors, row.way) for row in report.page] == [
        (1, "granite-demo, engine and backend"),
        (1, "granite-demo, engine"),
        (1, "granite-demo, page"),
        (1, "granite-demo, API"),
        (2, "granite-demo, engine"),
        (2, "granite-demo, page"),
        (2, "granite-demo, API"),
    ]
    assert all(row.rate.median > 0 and row.ttft.median > 0 for row in report.page)
    assert [row.cost is not None for row in report.page] == [False, False, True, True, False, True, True]
    assert 0 < report.startup.page < report.startup.ready
    assert report.startup.first_token > report.startup.page
