"""Each token of a prompt has one origin, and the joined texts of the tokens equal the prompt."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granite_demo.prompts.attribution import locate, parts_of
from granite_demo.prompts.taint import Span
from granite_demo.types.prompt_view import Origin
from tests.bytetokens import byte_tokenizer

BYTES = byte_tokenizer()


def spans(*pairs: tuple[Origin, str]) -> list[Span]:
    return [Span(origin, text) for origin, text in pairs]


def located(plain: str, *pairs: tuple[Origin, str]) -> list[tuple[Origin, str]]:
    return [(span.origin, span.text) for span in locate(plain, spans(*pairs))]


def test_the_same_text_keeps_its_spans() -> None:
    pairs: list[tuple[Origin, str]] = [("template", "user:"), ("user", "use"), ("template", "."), ("system", "r")]
    assert located("user:use.r", *pairs) == pairs


def test_json_goes_with_the_tool_or_document_in_it() -> None:
    dumped: list[tuple[Origin, str]] = [("template", 'See {x} [{"a": "'), ("tool", "b"), ("template", '", "c": "')]
    dumped += [("tool", "d"), ("template", '"}] ['), ("tool", "e"), ("template", "]")]
    assert located('See {x} [{"a": "b", "c": "d"}] [e]', *dumped) == [
        ("template", "See {x} "),
        ("tool", '[{"a": "b", "c": "d"}]'),
        ("template", " ["),
        ("tool", "e"),
        ("template", "]"),
    ]


def test_json_that_ends_inside_a_text_is_ignored() -> None:
    pairs: list[tuple[Origin, str]] = [("template", "["), ("document", "1] and more")]
    assert located("[1] and more", *pairs) == pairs


def test_json_from_the_user_belongs_to_the_user() -> None:
    pairs: list[tuple[Origin, str]] = [("user", '{"a": "'), ("tool", "b"), ("user", '"}')]
    assert located('{"a": "b"}', *pairs) == pairs


def test_texts_are_searched_for_if_the_template_changed_some() -> None:
    pairs: list[tuple[Origin, str]] = [
        ("user", "one"),
        ("template", "|"),
        ("user", " "),
        ("tool", "TWO"),
        ("user", "3"),
    ]
    assert located("<one>|two|3", *pairs) == [
        ("template", "<"),
        ("user", "one"),
        ("template", ">|two|"),
        ("user", "3"),
    ]


@pytest.mark.parametrize("text", ["a", "é", "駅", "\U0001f642", "e\u0301"])
def test_a_character_of_several_tokens_is_shown_once(text: str) -> None:
    [part] = parts_of(BYTES, [(text, spans(("user", text)))])
    assert part.text == text
    assert len(part.tokens) == len(text.encode())
    assert part.tokens[0][1] == text[0]


def test_control_tokens_are_parts_of_their_own() -> None:
    text = "<|im_start|>user hi<|im_end|>"
    parts = parts_of(BYTES, [(text, spans(("template", text[:17]), ("user", "hi"), ("template", "<|im_end|>")))])
    assert [(part.origin, part.text) for part in parts] == [
        ("control", "<|im_start|>"),
        ("template", "user "),
        ("user", "hi"),
        ("control", "<|im_end|>"),
    ]


class Words:
    """A tokenizer whose offsets exclude the space before a word. One of its tokens crosses two spans."""

    added_tokens_encoder: dict[str, int] = {}

    def __call__(self, text: str, **_: Any) -> Any:
        class Encoded:
            input_ids = [7, 8, 9]
            offset_mapping = [(0, 2), (3, 5), (6, 8)]

        return Encoded


def test_a_token_belongs_to_the_span_in_which_it_starts_and_no_text_is_lost() -> None:
    words: Any = Words()
    text = "ab cd ef "
    parts = parts_of(words, [(text, spans(("template", "ab "), ("user", "cd"), ("tool", " ef ")))])
    assert [(part.origin, part.tokens) for part in parts] == [
        ("template", ((7, "ab"), (8, " cd"))),
        ("tool", ((9, " ef "),)),
    ]


@given(texts=st.lists(st.text(st.sampled_from("aé駅\U0001f642 \n<|"), min_size=1), max_size=6))
def test_nothing_is_lost_or_added(texts: list[str]) -> None:
    origins: tuple[Origin, ...] = ("user", "template", "tool")
    made = [Span(origins[index % 3], text) for index, text in enumerate(texts)]
    prompt = "".join(texts)
    parts = parts_of(BYTES, [(prompt, made)])
    assert "".join(part.text for part in parts) == prompt
    assert [token for part in parts for token, _ in part.tokens] == BYTES(prompt).input_ids
    assert all("".join(shown for _, shown in part.tokens) == part.text for part in parts)
