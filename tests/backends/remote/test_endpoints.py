"""Tests for the addresses and the order of the servers."""

import time

import pytest

from granite_demo.backends.remote.endpoints import Endpoints, ProbeResult, ServedModel, parse_urls
from granite_demo.errors import ConfigurationError


def test_addresses_end_in_v1_and_are_distinct() -> None:
    text = "http://a:1, https://b/v1/ ,http://c/openai/,http://a:1/v1"
    assert parse_urls(text) == ("http://a:1/v1", "https://b/v1", "http://c/openai/v1")


@pytest.mark.parametrize("text", ["", " , ", "a:1", "ftp://a", "http://", "http://a:x", "http://a b", "http://a:0"])
def test_other_texts_raise(text: str) -> None:
    with pytest.raises(ConfigurationError, match="http://localhost:8000/v1"):
        parse_urls(text)


@pytest.mark.parametrize("text", ["http://me:hidden@a", "http://a/?key=hidden", "http://a/#hidden"])
def test_a_secret_in_an_address_raises_and_is_not_shown(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--backend-key") as raised:
        parse_urls(text)
    assert "hidden" not in raised.value.user_text


def test_servers_that_are_up_come_first_and_take_turns() -> None:
    endpoints = Endpoints(parse_urls("http://a,http://b,http://c,http://d"))
    a, b, c, d = endpoints.all
    a.last_probe = b.last_probe = ProbeResult(True, "", (ServedModel("m"),))
    c.last_probe = ProbeResult(False, "down", (ServedModel("m"),))
    d.last_probe = ProbeResult(True, "", (ServedModel("other"),))
    assert [endpoints.order("m") for _ in range(2)] == [[a, b, c], [b, a, c]]
    assert endpoints.order("other") == [d]
    assert set(endpoints.order("nobody's")) == {a, b, c, d}


def test_wait_ends_with_one_server_that_is_up_unless_for_all() -> None:
    endpoints = Endpoints(parse_urls("http://a,http://b"))
    endpoints.all[0].last_probe = ProbeResult(True)
    endpoints.all[0].probed.set()
    begun = time.monotonic()
    endpoints.wait(60)
    assert time.monotonic() - begun < 30
    endpoints.wait(0.3, for_all=True)
    assert time.monotonic() - begun > 0.3


def test_a_key_is_not_in_the_repr_of_an_endpoint() -> None:
    assert "hidden" not in repr(Endpoints(["http://a/v1"], "hidden").all)
