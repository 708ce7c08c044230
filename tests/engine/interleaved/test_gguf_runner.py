"""The slots of the GGUF runner over a fake of llama.cpp's caches: of a hybrid, which cannot rewind, too."""

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from granite_demo.engine.interleaved import gguf as interleaved_gguf
from granite_demo.engine.interleaved.gguf import GgufRunner, GgufSlot
from granite_demo.engine.token_stream import Cancelled
from granite_demo.loading.llama_cpp import Aborted

VOCABULARY = 10


class FakeCache:
    """Conversations as lists. A hybrid's can be emptied and nothing else."""

    batch = 512
    nbytes = 0

    def __init__(self, file: Any, slots: int, length: int, threads: int, exact: bool) -> None:
        self.rewinds = file.rewinds
        self.texts: list[list[int]] = [[] for _ in range(slots)]
        self.threads = (threads, threads)

    def decode(
        self, slot: int, position: int, ids: Sequence[int], *, every: bool = False, stop: Callable[[], bool] | None
    ) -> Any:
        assert position == len(self.texts[slot])
        self.texts[slot] += ids[:1]
        if stop and stop():
            raise Aborted
        self.texts[slot] += ids[1:]
        return np.eye(VOCABULARY, dtype=np.float32)[list(ids) if every else [ids[-1]]]

    def cut(self, slot: int, length: int) -> None:
        assert length == 0 or self.rewinds, "a state cannot be rewound"
        del self.texts[slot][length:]

    def copy(self, source: int, target: int, length: int) -> None:
        assert self.rewinds, "a state is of its whole text"
        self.texts[target] = self.texts[source][:length]

    def set_threads(self, decoding: int, prompts: int) -> None:
        self.threads = (decoding, prompts)


def runner(monkeypatch: pytest.MonkeyPatch, rewinds: bool, **options: Any) -> tuple[GgufRunner, FakeCache]:
    monkeypatch.setattr(interleaved_gguf, "LlamaCache", FakeCache)
    file: Any = SimpleNamespace(rewinds=rewinds, config=SimpleNamespace(vocab_size=VOCABULARY), words="fake")
    made = GgufRunner(file, 2, 1000, 4, **options)
    cache: Any = made._cache
    return made, cache


def read(made: GgufRunner, prompt: list[int]) -> tuple[GgufSlot, int]:
    """The slot that has read ``prompt``, closed, and how many tokens of it were there already."""
    slot = made.open(prompt)
    there = len(slot.ids)
    made.forward(slot, prompt[there:], lambda: None)
    made.close(slot)
    return slot, there


LONG = [index % VOCABULARY for index in range(200)]


@pytest.mark.parametrize("rewinds", [True, False])
def test_a_follow_up_goes_on_where_the_chat_was(monkeypatch: pytest.MonkeyPatch, rewinds: bool) -> None:
    made, cache = runner(monkeypatch, rewinds)
    slot, _ = read(made, LONG)
    again, there = read(made, [*LONG, 1, 2, 3])
    assert (again, there) == (slot, 200)
    assert cache.texts[slot.place] == [*LONG, 1, 2, 3] == slot.ids


@pytest.mark.parametrize(("rewinds", "kept"), [(True, 150), (False, 0)])
def test_an_edited_turn_keeps_what_can_be_kept(monkeypatch: pytest.MonkeyPatch, rewinds: bool, kept: int) -> None:
    made, cache = runner(monkeypatch, rewinds)
    read(made, LONG)
    read(made, [9, 9])
    edited = [*LONG[:150], 7, 7]
    slot, there = read(made, edited)
    assert there == kept
    assert cache.texts[slot.place] == edited == slot.ids


@pytest.mark.parametrize(("rewinds", "kept"), [(True, 80), (False, 0)])
def test_another_chat_copies_what_can_be_copied(monkeypatch: pytest.MonkeyPatch, rewinds: bool, kept: int) -> None:
    made, cache = runner(monkeypatch, rewinds)
    first, _ = read(made, LONG)
    slot, there = read(made, [*LONG[:80], 7])
    assert (there, slot.place == first.place) == (kept, False)
    assert cache.texts[first.place] == LONG


@pytest.mark.parametrize(("rewinds", "kept"), [(True, 3), (False, 0)])
def test_stopped_within_a_chunk_it_holds_whole_chunks_or_nothing(
    monkeypatch: pytest.MonkeyPatch, rewinds: bool, kept: int
) -> None:
    def stop() -> None:
        raise Cancelled

    made, cache = runner(monkeypatch, rewinds)
    slot = made.open(LONG)
    made.forward(slot, LONG[:3], lambda: None)
    with pytest.raises(Cancelled):
        made.forward(slot, LONG[3:], stop)
    assert slot.ids == cache.texts[slot.place] == LONG[:kept]
    made.close(slot)
    assert read(made, LONG)[0].ids == LONG


def test_a_failed_slot_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    made, cache = runner(monkeypatch, rewinds=False)
    slot = made.open(LONG)
    made.forward(slot, LONG, lambda: None)
    made.discard(slot)
    assert slot.ids == cache.texts[slot.place] == []


@pytest.mark.parametrize(("times", "best"), [({4: 4, 2: 5, 1: 9}, 4), ({4: 9, 2: 4, 1: 5}, 2), ({4: 9, 2: 7, 1: 2}, 1)])
def test_single_tokens_are_computed_on_as_many_threads_as_are_fastest(
    monkeypatch: pytest.MonkeyPatch, times: dict[int, int], best: int
) -> None:
    def clock() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += times[cache.threads[0]]
            yield now

    ticks = clock()
    made, cache = runner(monkeypatch, rewinds=False, measures=True, clock=lambda: next(ticks))
    made.warm_up()
    assert cache.threads == (best, 4)
    assert f"single tokens on {best} threads" in made.facts[1][2]
    assert cache.texts == [[], []]


def test_whoever_names_the_threads_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made, cache = runner(monkeypatch, rewinds=True)
    made.warm_up()
    assert cache.threads == (4, 4)
    assert "on 4 threads" in made.facts[1][2]
