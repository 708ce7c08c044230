"""Measurements of the CPU, with a fake clock."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest
import torch

from granite_demo.loading import cpu_benchmark
from granite_demo.loading.cpu_benchmark import (
    MESSAGE_ANSWER,
    Seconds,
    Threads,
    choose_threads,
    measured,
    message_seconds,
    usable_cores,
)
from granite_demo.loading.float32_prefill import float32_linear


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Clock:
    """A clock that is read in pairs: the next of ``steps`` passes inside a pair, and no time between pairs."""

    def __init__(self, *steps: float) -> None:
        self.times = list(chain(*((0.0, step) for step in steps)))

    def __call__(self) -> float:
        return self.times.pop(0)


def test_a_message_is_one_prompt_and_each_token_of_the_answer() -> None:
    # One warm-up, two prompts, four answers; the fastest one counts. One of the 8 weights computes the prompt.
    clock = Clock(99.0, 3.0, 2.0, 24.0, 8.0, 16.0, 80.0)
    seconds = message_seconds(torch.float32, clock=clock, rounds=2)
    assert clock.times == []
    assert seconds == Seconds(prompt=8 * 2.0, answer=MESSAGE_ANSWER * 8.0)
    assert seconds.total == seconds.prompt + seconds.answer


def test_the_given_product_is_measured() -> None:
    rows: list[int] = []

    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        assert x.dtype == weight.dtype == torch.bfloat16
        rows.append(len(x))
        return x

    message_seconds(torch.bfloat16, product, rounds=1)
    assert rows == [1] * 8 + [cpu_benchmark.MESSAGE_PROMPT] + [1] * 16


def test_a_measurement_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(cpu_benchmark, "message_seconds", lambda *arguments: calls.append(arguments))
    measured.cache_clear()
    measured(torch.bfloat16, True, 1)
    measured(torch.bfloat16, True, 1)
    measured(torch.bfloat16, False, 1)
    measured(torch.bfloat16, False, 2)
    assert [arguments[1] for arguments in calls] == [  # type: ignore[index]
        float32_linear,
        torch.nn.functional.linear,
        torch.nn.functional.linear,
    ]
    measured.cache_clear()


def taking(seconds: dict[int, float]) -> Callable[[int], Seconds]:
    return lambda count: Seconds(prompt=seconds[count] / 4, answer=seconds[count] * 3 / 4)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({8: 1.0, 4: 2.0, 2: 4.0}, 8),
        ({8: 1.0, 4: 0.95, 2: 2.0}, 8),
        ({8: 1.0, 4: 0.85, 2: 2.0}, 4),
        ({8: 1.0, 4: 0.85, 2: 0.7}, 2),
        ({8: 8.0, 4: 9.0, 2: 0.5}, 2),
        ({6: 1.0, 3: 0.5, 1: 2.0}, 3),
        ({2: 1.0, 1: 0.3}, 1),
    ],
)
def test_fewer_threads_are_chosen_only_if_they_are_clearly_faster(seconds: dict[int, float], best: int) -> None:
    chosen = choose_threads(max(seconds), taking(seconds))
    assert chosen.count == best
    assert torch.get_num_threads() == best
    tried = ", ".join(f"{value * 1000:.0f} ms on {tried}" for tried, value in seconds.items())
    assert chosen.reason == f"measured here: a typical message takes {tried}"


def test_one_core_needs_no_choice() -> None:
    assert choose_threads(1, taking({1: 1.0})) == Threads(1, "the only core")


def test_the_choice_for_this_machine_is_set_in_torch() -> None:
    choose_threads.cache_clear()
    chosen = choose_threads()
    assert 1 <= chosen.count <= usable_cores()
    assert torch.get_num_threads() == chosen.count
    assert "measured here" in chosen.reason or chosen.reason == "the only core"
    assert not chosen.requested


@pytest.mark.parametrize(
    ("written", "cores"),
    [("max 100000", 6), ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("900000 100000", 6), ("", 6)],
)
def test_a_container_can_have_fewer_cores(
    tmp_path: Path, written: str, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 6)
    torch.set_num_threads(12)
    (tmp_path / "cpu.max").write_text(written, encoding="ascii")
    assert usable_cores(tmp_path) == cores
    assert usable_cores(tmp_path / "nowhere") == 6
    torch.set_num_threads(3)
    assert usable_cores(tmp_path) == min(cores, 3)
