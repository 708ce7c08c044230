"""The rules of a server, from its settings."""

import pytest

from granite_demo.access import Limits
from granite_demo.errors import ConfigurationError
from granite_demo.server.policy import (
    MAX_BODY,
    PUBLIC_LIMITS,
    PUBLIC_MAX_BODY,
    PUBLIC_QUOTA,
    Quota,
    limits_of,
    policy_of,
)
from granite_demo.settings import LOOPBACK, Settings

PUBLIC = {"host": "0.0.0.0"}


def resolved(**flags: str) -> Settings:
    return Settings.resolve(flags, {})


def test_at_home_only_this_machines_names_are_answered() -> None:
    policy = policy_of(resolved())
    assert set(policy.hosts) == set(LOOPBACK)
    assert (policy.api_key, policy.logins, policy.max_body) == ("", (), MAX_BODY)
    assert policy.quota == Quota()
    assert not any(getattr(policy.quota, name) for name in Quota.__slots__)


def test_in_public_any_name_is_answered_and_less_is_taken() -> None:
    for flags in (PUBLIC, {"share": "yes"}):
        policy = policy_of(resolved(**flags))
        assert (policy.hosts, policy.max_body, policy.quota) == ((), PUBLIC_MAX_BODY, PUBLIC_QUOTA)
    assert all(getattr(PUBLIC_QUOTA, name) for name in Quota.__slots__)


def test_origins_are_named_in_full() -> None:
    assert policy_of(resolved()).origins == ()
    named = resolved(allowed_origins="https://Demo.example.org, http://localhost:3000")
    assert policy_of(named).origins == ("https://demo.example.org", "http://localhost:3000")
    for wrong in ("*", "demo.example.org", "https://demo.example.org/", "null", "file://x"):
        with pytest.raises(ConfigurationError, match="--allowed-origins"):
            policy_of(resolved(allowed_origins=wrong))


def test_the_page_of_a_space_is_shown_in_a_frame_of_the_hub() -> None:
    assert policy_of(resolved()).framed_by == policy_of(resolved(**PUBLIC)).framed_by == ""
    assert policy_of(Settings.resolve({}, {"SPACE_ID": "me/mine"})).framed_by == "https://huggingface.co"


def test_names_can_be_given_and_a_health_check_goes_on() -> None:
    hosts = policy_of(resolved(allowed_hosts=" Demo.example.org ,,other.example", **PUBLIC)).hosts
    assert {"demo.example.org", "other.example", *LOOPBACK} == set(hosts)
    assert policy_of(resolved(allowed_hosts="*")).hosts == ()


def test_logins_are_names_and_passwords() -> None:
    assert policy_of(resolved(login="ann:a:b, bob :c")).logins == (("ann", "a:b"), ("bob", "c"))


@pytest.mark.parametrize("login", ["ann", "ann:", ":secret", "ann:a,bob"])
def test_a_login_without_a_password_is_a_mistake(login: str) -> None:
    with pytest.raises(ConfigurationError, match="NAME:PASSWORD") as raised:
        policy_of(resolved(login=login))
    assert "secret" not in str(raised.value)


def test_strangers_are_limited_and_those_at_home_are_not() -> None:
    assert limits_of(resolved()) == Limits()
    assert limits_of(resolved(**PUBLIC)) == PUBLIC_LIMITS
    assert all(getattr(PUBLIC_LIMITS, name) for name in Limits.__slots__)


def test_each_limit_has_a_flag() -> None:
    flags = {"visitor_answers": "1", "visitor_waiting": "3", "visitor_tokens": "100000", "answer_seconds": "600"}
    assert limits_of(resolved(**flags)) == Limits(1, 3, 100_000, 600, 0)
    assert limits_of(resolved(**flags, **PUBLIC)) == Limits(
        1, 3, 100_000, 600, PUBLIC_LIMITS.characters, True, PUBLIC_LIMITS.reload
    )
