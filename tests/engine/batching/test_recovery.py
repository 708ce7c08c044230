"""How the request that makes steps fail is found."""

from dataclasses import dataclass, field

import pytest
import torch

from granite_demo.engine.batching.recovery import Quarantine, failure_error


@dataclass(eq=False)
class Request:
    name: str
    answer: list[int] = field(default_factory=list)
    poison: bool = False


def test_a_request_alone_in_a_failed_step_is_faulty() -> None:
    quarantine: Quarantine[Request] = Quarantine()
    request = Request("a")
    assert quarantine.split([request]) == ([request], [])


def test_of_several_requests_none_is_faulty_at_first() -> None:
    quarantine: Quarantine[Request] = Quarantine()
    requests = [Request("a"), Request("b")]
    assert quarantine.split(requests) == ([], requests)


def test_a_failed_step_without_requests() -> None:
    quarantine: Quarantine[Request] = Quarantine()
    assert quarantine.split([]) == ([], [])
    quarantine.add([], alone=True)
    assert not quarantine


def test_requests_run_one_at_a_time_until_past_the_failure() -> None:
    quarantine: Quarantine[Request] = Quarantine()
    first, second = Request("a", answer=[1, 2]), Request("b")
    quarantine.add([first, second], alone=True)
    assert quarantine.take() is first
    assert quarantine.take() is None
    # The next token failed, and another one was in flight.
    assert not quarantine.release_if_passed(first, 4)
    assert quarantine.take() is None
    assert not quarantine.release_if_passed(second, 99), "not under test"
    assert quarantine.release_if_passed(first, 5)
    assert not quarantine.release_if_passed(first, 6), "no longer under test"
    assert quarantine.take() is second


def test_the_end_of_a_tested_request_lets_the_next_one_run() -> None:
    quarantine: Quarantine[Request] = Quarantine()
    first, second, other = Request("a"), Request("b"), Request("c")
    quarantine.add([first, second], alone=True)
    assert quarantine.take() is first
    quarantine.discard(other)
    assert quarantine.take() is None
    quarantine.discard(first)
    assert quarantine.take() is second


def test_no_request_joins_the_last_one_under_test() -> None:
    quarantine: Quarantine[Request] = Quarantine()
    last = Request("a")
    quarantine.add([last], alone=True)
    assert quarantine.take() is last
    assert quarantine
    assert len(quarantine) == 0, "it runs"
    quarantine.discard(last)
    assert not quarantine


def test_the_tested_request_is_faulty_and_the_others_continue_together() -> None:
    quarantine: Quarantine[Request] = Quarantine()
    passed, tested, line = Request("a"), Request("b"), Request("c")
    quarantine.add([passed, tested, line], alone=True)
    assert quarantine.take() is passed
    quarantine.release_if_passed(passed, 3)
    assert quarantine.take() is tested
    assert quarantine.split([passed, tested]) == ([tested], [passed])
    quarantine.add([passed], alone=False)
    assert quarantine.take() is passed
    assert quarantine.take() is line, "not tested yet"


def test_clear_removes_and_returns_all_requests() -> None:
    quarantine: Quarantine[Request] = Quarantine()
    one, two, three = Request("a"), Request("b"), Request("c")
    quarantine.add([one, two], alone=True)
    quarantine.add([three], alone=False)
    assert len(quarantine) == 3
    assert quarantine.clear() == [three, one, two]
    assert not quarantine
    assert quarantine.take() is None


def test_only_a_lost_gpu_ends_the_engine() -> None:
    lost = torch.AcceleratorError("CUDA error: device-side assert triggered")
    with pytest.raises(torch.AcceleratorError):
        failure_error(lost)
    assert "out of memory" in failure_error(torch.AcceleratorError("CUDA error: out of memory")).user_text
    assert "Try again" in failure_error(None).user_text


def test_every_faulty_request_is_found_and_no_other() -> None:
    """A simulation in which each step with a poisoned request fails."""
    requests = [Request(name, poison=name in "bd") for name in "abcdef"]
    quarantine: Quarantine[Request] = Quarantine()
    running, faulty = list(requests), []
    while running or quarantine:
        while (request := quarantine.take()) is not None:
            running.append(request)
        if any(request.poison for request in running):
            found, innocent = quarantine.split(running)
            faulty += found
            quarantine.add(innocent, alone=not found)
            running = []
            continue
        for request in list(running):
            request.answer.append(0)
            quarantine.release_if_passed(request, len(request.answer))
            if len(request.answer) == 20:
                quarantine.discard(request)
                running.remove(request)
    assert [request.name for request in faulty] == ["b", "d"]
    assert all(len(request.answer) == 20 for request in requests if not request.poison)
