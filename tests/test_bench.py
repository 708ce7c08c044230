"""The benchmark measures what it says; its figures are for people, not for tests."""

import threading

import pytest

from granite_demo.backends import LocalBackend
from granite_demo.bench import compare
from granite_demo.engine.single import SingleStreamEngine
from granite_demo.loading import LoadedModel
from granite_demo.manager import ModelManager, ReadyModel
from granite_demo.types import LoadOptions, Report


@pytest.mark.slow
def test_each_way_is_measured_once_a_round(sample: LoadedModel) -> None:
    def load(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        return ReadyModel(sample, SingleStreamEngine(sample))

    backend = LocalBackend(ModelManager(load), LoadOptions())
    results = compare(backend, backend.wait_until_ready(), tokens=6, rounds=1)
    assert [result.name for result in results] == [
        "generate + TextIteratorStreamer",
        "granite-demo, engine and backend",
        "granite-demo, through the page",
    ]
    assert all(result.tokens_per_second > 0 and result.ttft > 0 for result in results)
