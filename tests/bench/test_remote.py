"""Tests for the measurement of a running server through a backend."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from granite_demo.bench import remote
from granite_demo.bench.options import BenchOptions
from granite_demo.errors import ConfigurationError
from granite_demo.types.events import StreamEvent
from granite_demo.types.requests import GenerationRequest
from tests.fakes import FakeBackend


class Counting(FakeBackend):
    most = 0

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        async for event in super().stream(request):
            self.most = max(self.most, self.running)
            yield event


def backend() -> Counting:
    return Counting(["word "] * 20, delay=0.005)


def test_all_users_ask_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    fake, lines = backend(), list[str]()
    remote.run(fake, BenchOptions(users=(1, 3), tokens=8, rounds=2, json_file="-"), lines.append)
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "fake"
    assert [row["users"] for row in report["rows"]] == [1, 3]
    one = report["rows"][0]
    assert fake.most == 3
    assert len(one["rate"]["values"]) == 2
    assert one["ttft"]["median"] > 0
    assert len(fake.requests) == 1 + 2 * (1 + 3)
    assert len({request.messages for request in fake.requests}) == len(fake.requests)
    assert {request.sampling.max_tokens for request in fake.requests[1:]} == {8}
    assert len(lines) == 4
    assert fake.closed.is_set()


def test_a_table_is_printed_and_a_file_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    remote.run(backend(), BenchOptions(users=(2,), tokens=4, rounds=1, json_file=str(file)), lambda text: None)
    assert "tokens/s of all" in capsys.readouterr().out
    assert json.loads(file.read_text())["rows"][0]["users"] == 2


@pytest.mark.parametrize("options", [BenchOptions(suites=("load",)), BenchOptions(lengths=(128,))])
def test_options_that_do_not_apply_to_a_server_raise(options: BenchOptions) -> None:
    with pytest.raises(ConfigurationError, match="--url"):
        remote.run(backend(), options, lambda text: None)
