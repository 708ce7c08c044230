"""Permanent objects are excluded from garbage collection until a model is unloaded."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from granite_demo.loading.gc import collect, settle  # imported before a fixture of all tests replaces them


class Thing:
    """An object that refers to itself, as many objects of a model do."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def nothing_frozen() -> Iterator[None]:
    """Unfreeze the objects of other tests, and freeze them again after the test."""
    gc.unfreeze()
    yield
    gc.freeze()


def test_settled_objects_are_excluded() -> None:
    thing = Thing()
    known = weakref.ref(thing)
    settle()
    assert len(gc.get_objects()) < 1000
    del thing
    gc.collect()
    assert known()


def test_collect_frees_settled_objects_and_settles_the_others() -> None:
    thing, stays = Thing(), Thing()
    gone, kept = weakref.ref(thing), weakref.ref(stays)
    settle()
    del thing
    collect()
    assert gone() is None
    del stays
    gc.collect()
    assert kept()
