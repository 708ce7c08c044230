"""Token ids to text with the real tokenizer: nothing lost, nothing half."""

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from granite_demo.prompts.tokenizer import IncrementalDecoder

if TYPE_CHECKING:
    from granite_demo.loading.load import LoadedModel

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
PIECES = (
    FAMILY,
    "\U0001f1e9\U0001f1ea",
    "\u2764\ufe0f",
    "日本語",
    "한국",
    "e\u0301",
    "\u05d0",
    " ",
    "\n",
    "\x00",
    "\x7f",
)
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=10).map("".join)


@cache
def pools(tokenizer: Any) -> tuple[range, list[int], list[int]]:
    """All ids; those of single bytes; those that hold text and then a part of a character."""
    decode = tokenizer.backend_tokenizer.decode
    every = range(len(tokenizer))
    single = [index for token, index in tokenizer.get_vocab().items() if len(token) == 1]
    cut = [index for index in every if decode([index]).endswith("\ufffd") and decode([index]).strip("\ufffd")]
    return every, single, cut


def whole(tokenizer: Any, ids: list[int], skip: bool = True) -> str:
    text: str = tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=skip)
    return text.replace("\ufffd", "")


def deltas(tokenizer: Any, ids: list[int], skip: bool = True) -> list[str]:
    decoder = IncrementalDecoder(tokenizer, skip_special_tokens=skip)
    return [decoder.feed(index) for index in ids] + [decoder.flush()]


def check(tokenizer: Any, ids: list[int], skip: bool = True) -> None:
    parts = deltas(tokenizer, ids, skip)
    assert "".join(parts) == whole(tokenizer, ids, skip)
    assert "\ufffd" not in "".join(parts)


@settings(deadline=None)
@given(picks=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2**16)), max_size=24), skip=st.booleans())
def test_any_ids_decode_to_the_whole(sample: "LoadedModel", picks: list[tuple[int, int]], skip: bool) -> None:
    sources = pools(sample.tokenizer)
    check(sample.tokenizer, [sources[pool][index % len(sources[pool])] for pool, index in picks], skip)


@settings(deadline=None)
@given(text=TEXTS)
def test_any_text_decodes_to_the_whole(sample: "LoadedModel", text: str) -> None:
    # Not to ``text`` itself: the sample's vocabulary lacks a few rare bytes.
    check(sample.tokenizer, sample.tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize(
    "text", [FAMILY, "\U0001f642", "日本語です", "한국어", "e\u0301", "\U0001f1e9\U0001f1ea", "naïve"]
)
def test_a_character_shows_with_its_last_token(sample: "LoadedModel", text: str) -> None:
    ids = sample.tokenizer(text, add_special_tokens=False).input_ids
    decoder = IncrementalDecoder(sample.tokenizer)
    shown = ""
    for count, index in enumerate(ids, 1):
        shown += decoder.feed(index)
        assert shown == whole(sample.tokenizer, ids[:count])
    assert shown == text


def test_text_before_half_a_character_is_not_lost_at_the_end(sample: "LoadedModel") -> None:
    half = pools(sample.tokenizer)[2][0]
    decoder = IncrementalDecoder(sample.tokenizer)
    assert decoder.feed(half) == ""
    assert decoder.flush() == whole(sample.tokenizer, [half]) != ""
    assert decoder.flush() == ""


def test_special_tokens_show_only_when_asked_for(sample: "LoadedModel") -> None:
    ids = sample.tokenizer("<|im_start|>hi<|im_end|>", add_special_tokens=False).input_ids
    assert "".join(deltas(sample.tokenizer, ids)) == "hi"
    assert "".join(deltas(sample.tokenizer, ids, skip=False)) == "<|im_start|>hi<|im_end|>"


def test_special_tokens_that_are_kept_show_and_the_others_do_not(sample: "LoadedModel") -> None:
    ids = sample.tokenizer("<|im_start|>h\U0001f642i<|im_end|>!<|endoftext|>", add_special_tokens=False).input_ids
    decoder = IncrementalDecoder(sample.tokenizer, keep=("<|im_end|>", "no token"))
    shown = [decoder.feed(index) for index in ids] + [decoder.flush()]
    assert "".join(shown) == "h\U0001f642i<|im_end|>!"


@settings(deadline=None)
@given(picks=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**16)), max_size=24))
def test_any_ids_decode_to_the_whole_without_what_is_not_kept(
    sample: "LoadedModel", picks: list[tuple[int, int]]
) -> None:
    specials = [index for index, token in sample.tokenizer.added_tokens_decoder.items() if token.special]
    sources = [*pools(sample.tokenizer), specials]
    ids = [sources[pool][index % len(sources[pool])] for pool, index in picks]
    keep = sample.tokenizer.convert_ids_to_tokens(specials[:2])
    decoder = IncrementalDecoder(sample.tokenizer, keep=keep)
    parts = [decoder.feed(index) for index in ids] + [decoder.flush()]
    kept = [index for index in ids if index not in specials[2:]]
    assert "".join(parts) == whole(sample.tokenizer, kept, skip=False)
    assert "\ufffd" not in "".join(parts)
