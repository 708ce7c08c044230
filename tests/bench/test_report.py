"""Tests for the JSON of a report."""

import json
from typing import Any

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.bench.options import BenchSizes
from granite_demo.bench.report import SCHEMA_VERSION, describe
from tests.bench.made_up import CountingEngine, loaded, report


def test_every_figure_has_its_samples() -> None:
    found: dict[str, Any] = json.loads(report().as_json())
    assert found["schema"] == SCHEMA_VERSION
    assert set(found) == {
        "schema", "model", "device", "versions", "settings", "setup", "facts", "started", "seconds", "notes", "load",
        "decode", "ttft", "page", "startup",
    }  # fmt: skip
    row = found["decode"]["rows"][2]
    assert set(row) == {
        "way", "users", "choice", "precision", "documented", "rate", "ttft", "queued", "limit", "share",
        "evenness",
    }  # fmt: skip
    assert row["rate"] == {"median": 30.0, "low": 27.0, "high": 33.0, "values": [27.0, 30.0, 33.0]}
    assert (row["limit"], row["share"]) == (120.0, 0.25)
    assert found["load"]["weights"] == 540_000_000
    assert found["ttft"][1]["documented"] is None


def test_a_report_has_the_model_the_machine_versions_and_settings() -> None:
    sizes = BenchSizes(users=(1, 4), tokens=16, prompt=16, lengths=(128,))
    found = describe(ReadyModel(loaded(), CountingEngine()), sizes, ["decode"], "now")
    assert found.model["title"] == loaded().spec.title
    assert found.model["shape"]["layers"] == 2
    assert found.device["device"] == "cpu"
    assert found.device["threads"] >= 1
    assert found.device["memory"] > 10**8
    assert {"python", "torch", "transformers", "granite-demo"} <= set(found.versions)
    assert found.settings["users"] == (1, 4)
    assert found.settings["suites"] == ["decode"]
    assert ("Engine", "counting", "a test") in found.facts
    assert found.setup.engine == CountingEngine.setup
    assert json.loads(found.as_json())["settings"]["tokens"] == 16
