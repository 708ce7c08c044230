"""Token ids to text with a real tokenizer: no character is lost or incomplete."""

from collections.abc import Collection
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from granite_demo.prompts.tokenizer import Detokenizer

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
    """Return all ids, the ids of single bytes, and the ids of text that ends inside a character."""
    decode = tokenizer.backend_tokenizer.decode
    every = range(len(tokenizer))
    single = [index for token, index in tokenizer.backend_tokenizer.get_vocab().items() if len(token) == 1]
    cut = [index for index in every if decode([index]).endswith("\ufffd") and decode([index]).strip("\ufffd")]
    return every, single, cut


def decode(tokenizer: Any, ids: list[int], skip: bool = True) -> str:
    text: str = tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=skip)
    return text.replace("\ufffd", "")


def decode_in_steps(tokenizer: Any, ids: list[int], keep: Collection[str] = ()) -> str:
    decoder = Detokenizer(tokenizer, keep=keep)
    return "".join([decoder.feed(index) for index in ids] + [decoder.flush()])


@settings(deadline=None)
@given(picks=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2**16)), max_size=24))
def test_any_ids_decode_as_at_once(sample_tokenizer: Any, picks: list[tuple[int, int]]) -> None:
    sources = pools(sample_tokenizer)
    ids = [sources[pool][index % len(sources[pool])] for pool, index in picks]
    assert decode_in_steps(sample_tokenizer, ids) == decode(sample_tokenizer, ids)


@settings(deadline=None)
@given(text=TEXTS)
def test_any_text_decodes_as_at_once(sample_tokenizer: Any, text: str) -> None:
    # The result can differ from ``text``: the sample's vocabulary lacks a few rare bytes.
    ids = sample_tokenizer(text, add_special_tokens=False).input_ids
    assert decode_in_steps(sample_tokenizer, ids) == decode(sample_tokenizer, ids)


@pytest.mark.parametrize(
    "text", [FAMILY, "\U0001f642", "日本語です", "한국어", "e\u0301", "\U0001f1e9\U0001f1ea", "naïve"]
)
def test_a_character_shows_with_its_last_token(sample_tokenizer: Any, text: str) -> None:
    ids = sample_tokenizer(text, add_special_tokens=False).input_ids
    decoder = Detokenizer(sample_tokenizer)
    shown = ""
    for count, index in enumerate(ids, 1):
        shown += decoder.feed(index)
        assert shown == decode(sample_tokenizer, ids[:count])
    assert shown == text


def test_text_before_an_incomplete_character_is_not_lost_at_the_end(sample_tokenizer: Any) -> None:
    half = pools(sample_tokenizer)[2][0]
    decoder = Detokenizer(sample_tokenizer)
    assert decoder.feed(half) == ""
    assert decoder.flush() == decode(sample_tokenizer, [half]) != ""
    assert decoder.flush() == ""


@pytest.mark.parametrize(
    ("keep", "shown"), [((), "h\U0001f642i!"), (("<|im_end|>", "no token"), "h\U0001f642i<|im_end|>!")]
)
def test_only_special_tokens_in_keep_are_shown(sample_tokenizer: Any, keep: tuple[str, ...], shown: str) -> None:
    ids = sample_tokenizer("<|im_start|>h\U0001f642i<|im_end|>!<|endoftext|>", add_special_tokens=False).input_ids
    assert decode_in_steps(sample_tokenizer, ids, keep) == shown


@settings(deadline=None)
@given(picks=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**16)), max_size=24))
def test_any_ids_decode_as_at_once_without_the_skipped_tokens(
    sample_tokenizer: Any, picks: list[tuple[int, int]]
) -> None:
    added = sample_tokenizer.backend_tokenizer.get_added_tokens_decoder()
    specials = [index for index, token in added.items() if token.special]
    sources = [*pools(sample_tokenizer), specials]
    ids = [sources[pool][index % len(sources[pool])] for pool, index in picks]
    keep = [added[index].content for index in specials[:2]]
    kept = [index for index in ids if index not in specials[2:]]
    assert decode_in_steps(sample_tokenizer, ids, keep) == decode(sample_tokenizer, kept, skip=False)
