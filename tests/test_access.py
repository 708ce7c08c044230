"""Who may change the model, and how often a secret may be guessed."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from granite_demo import access as access_module
from granite_demo.access import FAILURE_WINDOW, MAX_FAILURES, Access, Failures
from granite_demo.errors import InvalidRequestError, VisitorLimitError

Clock = Callable[[float], None]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Lets seconds pass."""
    now = [1000.0]
    # Only there: servers that other tests share tell the time by the same module.
    monkeypatch.setattr(access_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_at_home_everybody_may_load() -> None:
    Access(public=False, token="secret").check(None, "")


def test_in_public_without_a_token_nobody_may() -> None:
    for token in (None, "", "secret"):
        with pytest.raises(InvalidRequestError, match="GRANITE_DEMO_ADMIN_TOKEN"):
            Access(public=True).check(token, "")


@pytest.mark.parametrize("token", [None, "", "wrong", "sécret", "secret "])
def test_in_public_the_token_must_be_right(token: str | None) -> None:
    access = Access(public=True, token="secret")
    with pytest.raises(InvalidRequestError, match="not the admin token"):
        access.check(token, "")
    access.check("secret", "")


def test_a_token_can_be_guessed_a_few_times_a_minute(later: Clock) -> None:
    access = Access(public=True, token="secret")
    for guess in range(MAX_FAILURES):
        with pytest.raises(InvalidRequestError):
            access.check(str(guess), "stranger")
    with pytest.raises(VisitorLimitError, match="Too many failed attempts"):
        access.check("secret", "stranger")
    access.check("secret", "owner")
    later(FAILURE_WINDOW)
    access.check("secret", "stranger")


def test_wrong_tries_are_forgotten_one_by_one(later: Clock) -> None:
    failures = Failures()
    for _ in range(MAX_FAILURES):
        failures.add("stranger")
        later(10)
    with pytest.raises(VisitorLimitError):
        failures.check("stranger")
    later(FAILURE_WINDOW - 10 * MAX_FAILURES)
    failures.check("stranger")


def test_old_addresses_are_forgotten(later: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "MAX_REMEMBERED", 10)
    failures = Failures()
    for number in range(10):
        failures.add(str(number))
    later(FAILURE_WINDOW)
    failures.add("new")
    assert list(failures._times) == ["new"]
