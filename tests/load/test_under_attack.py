"""Attacks from two addresses, while another visitor uses the page and the API of the same public server."""

import asyncio
import os
import time
from collections.abc import Iterator

import pytest

from tests.load.attacks import ATTACKS, under_attack
from tests.load.process import LoadServer, server

SECONDS = float(os.environ.get("GRANITE_DEMO_ATTACK", "20"))
SLOWEST, MEMORY_MB = 1.0, 50.0
REST_SECONDS = 10.0
"""Until the messages that nobody reads are deleted."""

pytestmark = pytest.mark.release


@pytest.fixture(scope="module")
def public() -> Iterator[LoadServer]:
    """Run a public server with a fake engine."""
    with server(rate=400, ttft=0.01, public=1) as found:
        yield found


@pytest.mark.parametrize("name", ATTACKS)
def test_other_visitors_are_served_and_memory_comes_back(public: LoadServer, name: str) -> None:
    """The memory of the second attack counts: Python keeps what the first one has freed."""
    before = public.census()["rss_mb"]
    sent, times = asyncio.run(under_attack(public, name, SECONDS))
    time.sleep(REST_SECONDS)
    first = public.census()["rss_mb"]
    asyncio.run(under_attack(public, name, SECONDS / 2))
    time.sleep(REST_SECONDS)
    second = public.census()["rss_mb"]
    figures = ", ".join(f"{each} {1000 * slow:.0f} ms" for each, slow in times.items())
    print(f"\n{name}: {sent} requests; p95 {figures}; memory {before:.0f}, {first:.0f}, {second:.0f} MB")
    assert sent > 20
    assert max(times.values()) < SLOWEST, times
    assert second - min(first, before) < MEMORY_MB or second - first < MEMORY_MB
    assert public.process.poll() is None
    assert not [line for line in public.log if "Traceback" in line], "".join(public.log[-20:])
