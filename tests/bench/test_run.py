"""Tests for the choice of the suites, and one run of all suites with the sample model."""

import sys
from functools import partial
from pathlib import Path

import pytest

from granite_demo.backends.model_manager import ModelManager
from granite_demo.backends.open_model import open_model
from granite_demo.bench import run as suites
from granite_demo.bench.options import SUITES, BenchOptions
from granite_demo.bench.report import BenchReport
from granite_demo.bench.suites.load import StageClock
from granite_demo.errors import ConfigurationError
from granite_demo.types.load_options import LoadOptions

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


def run(sample_path: Path, suite: str) -> BenchReport:
    clock = StageClock()
    load_options = LoadOptions(model="sample", device="cpu", dtype="float32")
    options = BenchOptions.parse(suite, "1,2", "32", 3, 1, None, None)
    loader = partial(open_model, sample_path.parent, 0, ignore_ends=True)
    serve = ["--model", "sample", "--device", "cpu", "--dtype", "float32", "--cache-dir", str(sample_path.parent)]
    manager = ModelManager(loader, clock)
    try:
        return suites.run(manager, load_options, clock, options, serve)
    finally:
        manager.close()


@pytest.mark.release
def test_the_engine_on_the_sample(sample_path: Path) -> None:
    report = run(sample_path, "load,decode,ttft")
    assert [note for note in report.notes if "waited in the queue" not in note] == []
    assert set(report.seconds) == {"load", "decode", "ttft"}
    assert report.load is not None
    assert report.load.load.median > 0
    assert report.load.warm_up.median > 0
    assert report.load.weights == pytest.approx(4 * 134_515_008, rel=1e-3)
    assert report.decode is not None
    assert [(row.users, row.way, row.precision, row.choice) for row in report.decode.rows] == [
        (1, "generate + TextIteratorStreamer", "float32", "greedy"),
        (1, "generate + TextIteratorStreamer", "bfloat16", "greedy"),
        (1, "granite-demo", "float32", "greedy"),
        (1, "granite-demo", "float32", "sampled"),
        (2, "generate_batch", "float32", "greedy"),
        (2, "generate_batch", "bfloat16", "greedy"),
        (2, "granite-demo", "float32", "greedy"),
        (2, "granite-demo", "float32", "sampled"),
    ]
    assert all(row.rate.median > 0 and row.ttft.median > 0 and row.share for row in report.decode.rows)
    [row] = report.ttft
    assert row.prompt_tokens == 32
    assert row.documented is not None
    assert row.documented_follow_up is not None
    assert min(row.cold.median, row.follow_up.median, row.documented.median, row.documented_follow_up.median) > 0


@pytest.mark.release
def test_the_page_on_the_sample(sample_path: Path) -> None:
    report = run(sample_path, "page")
    assert report.load is None
    assert [(row.visitors, row.way) for row in report.page] == [
        (1, "generate + TextIteratorStreamer"),
        (1, "granite-demo, engine and backend"),
        (1, "granite-demo, engine"),
        (1, "granite-demo, page"),
        (1, "granite-demo, API"),
        (2, "granite-demo, engine"),
        (2, "granite-demo, page"),
        (2, "granite-demo, API"),
    ]
    assert all(row.rate.median > 0 and row.ttft.median > 0 for row in report.page)
    assert [row.cost is not None for row in report.page] == [False, False, False, True, True, False, True, True]
    assert 0 < report.startup.page < report.startup.ready
    assert report.startup.first_token > report.startup.page
