"""The store of caches: search, budget and replacement."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granite_demo.engine.interleaved.prefix_cache import PrefixStore, common


@dataclass(eq=False)
class Thing:
    ids: list[int]
    salt: str = ""
    measured: int = 0

    @property
    def nbytes(self) -> int:
        self.measured += 1
        return 10 * len(self.ids)


def store_of(*things: Thing, budget: int = 1000) -> PrefixStore[Thing]:
    store: PrefixStore[Thing] = PrefixStore(budget)
    for thing in things:
        store.put(thing)
    return store


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 9, 3], 1), ([1], [2], 0)],
)
def test_the_common_prefix(one: list[int], other: list[int], expected: int) -> None:
    assert common(one, other) == common(other, one) == expected


@given(st.lists(st.integers(0, 1), max_size=12), st.lists(st.integers(0, 1), max_size=12))
def test_the_common_prefix_of_any_ids(one: list[int], other: list[int]) -> None:
    length = common(one, other)
    assert one[:length] == other[:length]
    assert one[length : length + 1] != other[length : length + 1] or length == min(len(one), len(other))


def test_only_caches_with_the_same_salt_are_found_and_replaced() -> None:
    ann, bob = Thing([1, 2, 3], "ann"), Thing([1, 2], "bob")
    store = store_of(bob, ann)
    assert len(store) == 2
    assert store.find([1, 2, 3, 4], "ann") == (ann, 3)
    assert store.find([1, 2, 3, 4], "bob") == (bob, 2)
    assert store.find([1, 2, 3, 4]) == (None, 0)


def test_a_cache_is_measured_once_and_their_number_has_a_limit() -> None:
    things = [Thing([number, 0]) for number in range(2000)]
    store: PrefixStore[Thing] = PrefixStore(10**9, most=100)
    for thing in things:
        store.put(thing)
    assert {thing.measured for thing in things} == {1}
    assert (len(store), store.nbytes) == (100, 2000)
    assert store.find([1899, 0, 1]) == (None, 0)
    assert store.find([1900, 0, 1])[0] is things[1900]


def test_the_longest_prefix_is_found() -> None:
    short, long, other = Thing([1, 2, 9]), Thing([1, 2, 3, 4, 8]), Thing([7, 7, 7, 7, 7, 7])
    assert store_of(short, long, other).find([1, 2, 3, 4, 5, 6]) == (long, 4)
    assert store_of(short, long, other).find([1, 2, 5, 5, 5, 5])[1] == 2
    assert store_of(short, long, other).find([5, 1, 2, 3, 4]) == (None, 0)


def test_the_last_id_is_never_in_the_prefix() -> None:
    thing = Thing([1, 2, 3, 4])
    assert store_of(thing).find([1, 2, 3, 4]) == (thing, 3)
    assert store_of(thing).find([1, 2]) == (thing, 1)
    assert store_of(thing).find([1]) == (None, 0)


def test_only_complete_prefixes_count_on_request() -> None:
    short, long = Thing([1, 2]), Thing([1, 2, 3, 4])
    assert store_of(short, long).find([1, 2, 3, 9, 9], complete=True) == (None, 0), (
        "the long one stands for the short one"
    )
    other = Thing([1, 2, 5])
    assert store_of(other, long).find([1, 2, 5, 9, 9], complete=True) == (other, 3)
    assert store_of(other, long).find([1, 2, 5], complete=True) == (None, 0), "the last id has to be read"


def test_the_least_recently_used_is_dropped_first() -> None:
    a, b, c = Thing([1] * 40), Thing([2] * 40), Thing([3] * 40)
    store = store_of(a, b)
    store.find([1, 1, 9])
    store.put(c)
    assert store.nbytes == 800
    assert store.find([1, 1, 1])[0] is a
    assert store.find([3, 3, 3])[0] is c
    assert store.find([2, 2, 2])[0] is None


def test_a_cache_larger_than_the_budget_replaces_nothing() -> None:
    other, beginning = Thing([2] * 40), Thing([1] * 50)
    store = store_of(other, beginning, Thing([1] * 101))
    assert store.nbytes == 900
    assert store.find([1] * 60) == (beginning, 50)
    assert store.find([2, 2, 2]) == (other, 2)


def test_a_longer_cache_replaces_its_prefix() -> None:
    short, long = Thing([1, 2]), Thing([1, 2, 3])
    assert len(store_of(short, long)) == 1
    assert len(store_of(long, short)) == 2, "the other way round one of them may not be cut"
    assert len(store_of(Thing([1, 2]), Thing([1, 2]))) == 1


def test_a_taken_cache_is_removed() -> None:
    thing = Thing([1, 2, 3])
    store = store_of(thing, Thing([5]))
    store.take(thing)
    assert store.find([1, 2, 3]) == (None, 0)
    assert len(store) == 1
    store.clear()
    assert len(store) == 0
