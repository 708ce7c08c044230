"""Finding the request that makes steps fail."""

from dataclasses import dataclass, field

import pytest
import torch

from granite_demo.engine.batching.recovery import Suspects, cause_of


@dataclass(eq=False)
class Request:
    name: str
    answer: list[int] = field(default_factory=list)
    poison: bool = False


def test_who_was_alone_is_the_culprit() -> None:
    suspects: Suspects[Request] = Suspects()
    request = Request("a")
    assert suspects.judge([request]) == ([request], [])


def test_of_several_nobody_is_yet() -> None:
    suspects: Suspects[Request] = Suspects()
    requests = [Request("a"), Request("b")]
    assert suspects.judge(requests) == ([], requests)


def test_nobody_failed() -> None:
    suspects: Suspects[Request] = Suspects()
    assert suspects.judge([]) == ([], [])
    suspects.add([], alone=True)
    assert not suspects


def test_suspects_run_one_at_a_time_until_past_the_failure() -> None:
    suspects: Suspects[Request] = Suspects()
    first, second = Request("a", answer=[1, 2]), Request("b")
    suspects.add([first, second], alone=True)
    assert suspects.take() is first
    assert suspects.take() is None
    # Its next token is the one that failed, and another one was in flight.
    assert not suspects.clear_if_passed(first, 4)
    assert suspects.take() is None
    assert not suspects.clear_if_passed(second, 99), "not the one on trial"
    assert suspects.clear_if_passed(first, 5)
    assert not suspects.clear_if_passed(first, 6), "no longer on trial"
    assert suspects.take() is second


def test_whoever_ends_on_trial_makes_room_for_the_next() -> None:
    suspects: Suspects[Request] = Suspects()
    first, second, other = Request("a"), Request("b"), Request("c")
    suspects.add([first, second], alone=True)
    assert suspects.take() is first
    suspects.gone(other)
    assert suspects.take() is None
    suspects.gone(first)
    assert suspects.take() is second


def test_nobody_may_join_the_last_one_on_trial() -> None:
    suspects: Suspects[Request] = Suspects()
    last = Request("a")
    suspects.add([last], alone=True)
    assert suspects.take() is last
    assert suspects
    assert len(suspects) == 0, "it runs"
    suspects.gone(last)
    assert not suspects


def test_whoever_is_on_trial_is_the_culprit_and_the_others_go_on_together() -> None:
    suspects: Suspects[Request] = Suspects()
    passed, on_trial, line = Request("a"), Request("b"), Request("c")
    suspects.add([passed, on_trial, line], alone=True)
    assert suspects.take() is passed
    suspects.clear_if_passed(passed, 3)
    assert suspects.take() is on_trial
    assert suspects.judge([passed, on_trial]) == ([on_trial], [passed])
    suspects.add([passed], alone=False)
    assert suspects.take() is passed
    assert suspects.take() is line, "still to be tried"


def test_clear_returns_all_that_wait_and_forgets_them() -> None:
    suspects: Suspects[Request] = Suspects()
    one, two, three = Request("a"), Request("b"), Request("c")
    suspects.add([one, two], alone=True)
    suspects.add([three], alone=False)
    assert len(suspects) == 3
    assert suspects.clear() == [three, one, two]
    assert not suspects
    assert suspects.take() is None


def test_only_a_lost_gpu_is_the_end() -> None:
    lost = torch.AcceleratorError("CUDA error: device-side assert triggered")
    with pytest.raises(torch.AcceleratorError):
        cause_of(lost)
    assert "out of memory" in cause_of(torch.AcceleratorError("CUDA error: out of memory")).user_text
    assert "Try again" in cause_of(None).user_text


def test_every_poison_is_found_and_nobody_else() -> None:
    """A whole run: each step fails if a poisoned request is in it."""
    requests = [Request(name, poison=name in "bd") for name in "abcdef"]
    suspects: Suspects[Request] = Suspects()
    running, culprits = list(requests), []
    while running or suspects:
        while (request := suspects.take()) is not None:
            running.append(request)
        if any(request.poison for request in running):
            found, innocent = suspects.judge(running)
            culprits += found
            suspects.add(innocent, alone=not found)
            running = []
            continue
        for request in list(running):
            request.answer.append(0)
            suspects.clear_if_passed(request, len(request.answer))
            if len(request.answer) == 20:
                suspects.gone(request)
                running.remove(request)
    assert [request.name for request in culprits] == ["b", "d"]
    assert all(len(request.answer) == 20 for request in requests if not request.poison)
