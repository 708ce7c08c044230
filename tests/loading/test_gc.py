"""What stays is searched for garbage only where a model goes."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from granite_demo.loading.gc import collect, settle  # before the other tests' fixture takes their place


class Thing:
    """Refers to itself, as much of a model does."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def nothing_frozen() -> Iterator[None]:
    """What other tests froze is frozen again afterwards."""
    gc.unfreeze()
    yield
    gc.freeze()


def test_what_is_settled_is_not_searched() -> None:
    thing = Thing()
    known = weakref.ref(thing)
    settle()
    assert len(gc.get_objects()) < 1000
    del thing
    gc.collect()
    assert known()


def test_collecting_finds_what_was_settled_and_settles_the_rest() -> None:
    thing, stays = Thing(), Thing()
    gone, kept = weakref.ref(thing), weakref.ref(stays)
    settle()
    del thing
    collect()
    assert gone() is None
    del stays
    gc.collect()
    assert kept()
