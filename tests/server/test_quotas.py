"""What one address uses is counted, per minute and at the same time, and little is remembered of it."""

import pytest

from granite_demo.server import quotas
from granite_demo.server.quotas import NewSessions, Places, Rate


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [1000.0]
    monkeypatch.setattr("granite_demo.server.quotas.time.monotonic", lambda: now[0])
    return now


def test_a_rate_gives_all_at_once_then_one_after_the_other(clock: list[float]) -> None:
    rate = Rate(30)
    assert [rate.take("a") for _ in range(30)] == [0.0] * 30
    assert rate.take("a") == pytest.approx(2.0)
    assert rate.take("b") == 0.0
    clock[0] += 2.0
    assert (rate.take("a"), rate.take("a") > 0) == (0.0, True)
    clock[0] += 3600
    assert [rate.take("a") for _ in range(31)].count(0.0) == 30


def test_no_limit_is_no_limit(clock: list[float]) -> None:
    rate, places, sessions = Rate(0), Places(0), NewSessions(0)
    for number in range(1000):
        assert rate.take("a") == 0.0
        assert places.enter("a")
        assert sessions.take("a", str(number)) == 0.0


def test_only_new_sessions_count(clock: list[float]) -> None:
    sessions = NewSessions(2)
    assert [sessions.take("a", name) > 0 for name in ("x", "x", "y", "x", "z", "y", "")] == [
        *(False, False, False, False, True, False, True)
    ]
    assert sessions.take("b", "x") == 0.0, "the session of another address is new"


def test_addresses_are_forgotten_from_the_first(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "MAX_KNOWN", 100)
    rate, sessions = Rate(5), NewSessions(5)
    for number in range(1000):
        rate.take(str(number))
        sessions.take(str(number), "x")
    assert len(rate._buckets) == len(sessions._known) == 100


def test_places_are_given_back() -> None:
    places = Places(2)
    assert [places.enter("a") for _ in range(3)] == [True, True, False]
    assert places.enter("b")
    places.leave("a")
    assert places.enter("a")
    for visitor in ("a", "a", "b"):
        places.leave(visitor)
    assert not places._taken
