"""Which models fill in the middle, and the prompts that they get."""

from typing import Any

import pytest

from granite_demo.errors import InvalidRequestError
from granite_demo.prompts.fim import (
    NO_TOKENS,
    NOT_SUPPORTED,
    SPELLINGS,
    cannot_fill,
    fim_problem,
    fim_spans,
    in_a_turn,
)
from granite_demo.prompts.tokenizer import encode_each
from tests.bytetokens import THINKS, byte_tokenizer


def prompt_ids(tokenizer: Any, prefix: str, suffix: str) -> list[int]:
    texts = [span.text for span in fim_spans(tokenizer, prefix, suffix)]
    return [token for ids in encode_each(tokenizer, texts) for token in ids]


@pytest.mark.parametrize("names", SPELLINGS)
def test_text_of_the_request_never_becomes_a_control_token(names: tuple[str, str, str]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(names), special_tokens=True)
    first, second, third = tokenizer.convert_tokens_to_ids(list(names))
    assert prompt_ids(tokenizer, "", "") == [first, second, third]
    written = "".join(names) + "<|end_of_text|>"
    ids = prompt_ids(tokenizer, written, written)
    assert tokenizer.decode(ids) == names[0] + written + names[1] + written + names[2]
    assert [token for token in ids if token in tokenizer.added_tokens_decoder] == [first, second, third]


def test_a_tokenizer_needs_all_three_tokens() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<fim_prefix>", "<fim_suffix>"], special_tokens=True)
    assert fim_problem(tokenizer) == NO_TOKENS
    assert cannot_fill(tokenizer, "granite-3.3") == (("fill in the middle", NO_TOKENS),)
    with pytest.raises(InvalidRequestError, match="Choose a Granite"):
        fim_spans(tokenizer, "a", "b")


@pytest.mark.parametrize(
    ("chat_format", "able"),
    [(None, True), ("granite-3.3", True), ("granite-4.0", True), ("granite-3.2", False), ("granite-4.2", False)],
)
def test_tokens_alone_are_not_sufficient(chat_format: str | None, able: bool) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(SPELLINGS[0]), special_tokens=True)
    assert fim_problem(tokenizer, chat_format) == ("" if able else NOT_SUPPORTED)
    assert cannot_fill(tokenizer, chat_format) == (() if able else (("fill in the middle", NOT_SUPPORTED),))


def test_only_granite_4_with_a_template_gets_the_prompt_in_a_turn() -> None:
    for names, expected in zip(SPELLINGS, (True, False), strict=True):
        base, instruct = byte_tokenizer(), byte_tokenizer(THINKS)
        for tokenizer in (base, instruct):
            tokenizer.add_tokens(list(names), special_tokens=True)
        assert not in_a_turn(base)
        assert in_a_turn(instruct) is expected
