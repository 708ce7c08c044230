"""Tests for the times of the stages of a load, and for memory."""

import threading

from granite_demo.backends.model_manager import ModelManager, ReadyModel
from granite_demo.bench.suites import load
from granite_demo.types.load_options import LoadOptions, LoadStage, Report
from granite_demo.types.model_status import ModelStatus
from tests.bench.made_up import CountingEngine, loaded


def test_a_stage_lasts_until_the_next() -> None:
    times = iter([1.0, 3.0, 7.0])
    shown: list[str] = []
    clock = load.StageClock(lambda status: shown.append(status.stage), lambda: next(times))
    stages: list[LoadStage] = ["downloading", "loading", "loading", "warming up"]
    for stage in stages:
        clock(ModelStatus("sample", stage))
    assert clock.seconds("downloading", 9.0) == 2.0
    assert clock.seconds("loading", 9.0) == 4.0
    assert clock.seconds("warming up", 9.0) == 2.0
    assert clock.seconds("converting", 9.0) == 0.0
    assert shown == stages
    clock.restart()
    assert clock.seconds("loading", 9.0) == 0.0


def test_each_round_loads_again_and_the_last_model_stays() -> None:
    loads: list[CountingEngine] = []

    def loader(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        report("loading", None, "")
        report("warming up", None, "")
        loads.append(CountingEngine())
        return ReadyModel(loaded(), loads[-1])

    clock, lines = load.StageClock(), list[str]()
    manager = ModelManager(loader, clock)
    found, ready = load.measure(manager, LoadOptions(), clock, 3, lines.append)
    manager.close()
    assert len(loads) == len(found.load.values) == len(found.warm_up.values) == 3
    assert ready.engine is loads[-1]
    assert [len(engine.requests) for engine in loads] == [0, 0, 1]
    assert lines == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]
    assert (found.weights, found.kv_cache, found.context) == (10_000, None, 1000)


def test_memory_is_that_of_the_process() -> None:
    in_use, peak, counted = load.memory("cpu")
    assert 10**7 < in_use <= peak < 10**12
    assert counted == "resident, the whole process"
