"""Constrained answers, drawn from random allowed tokens and judged by libraries independent of llguidance."""

import asyncio
import gc
import json
import re
import threading
import time
from contextlib import suppress
from decimal import Decimal
from itertools import count, pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from granite_demo.errors import EngineError, InvalidRequestError
from granite_demo.outputs import structured_output
from granite_demo.outputs.dialects import DIALECTS, Dialect
from granite_demo.outputs.structured_output import Matcher, compile_constraint, compile_in_time, prepare
from granite_demo.types import constraints as constraint_checks
from granite_demo.types.constraints import Constraint
from tests.bytetokens import byte_tokenizer
from tests.schemas import random_schema

BYTES = byte_tokenizer()
END = BYTES.convert_tokens_to_ids("<|end_of_text|>")
OTHER_END = BYTES.convert_tokens_to_ids("<|im_end|>")
VOCABULARY = len(BYTES) + 6


@pytest.fixture(scope="module")
def real_tokenizer(sample_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(sample_path)


def matcher_of(constraint: Constraint) -> Matcher:
    return compile_constraint(BYTES, constraint, VOCABULARY, [OTHER_END, END])


def ids(text: str) -> list[int]:
    tokens: list[int] = BYTES(text, add_special_tokens=False).input_ids
    return tokens


def accepts(constraint: Constraint, text: str) -> bool:
    """Whether the constraint allows ``text`` as a complete answer."""
    matcher = matcher_of(constraint)
    for token_id in ids(text):
        if not matcher.allowed()[token_id]:
            return False
        matcher.accept(token_id)
    return bool(matcher.allowed()[END])


def write(matcher: Matcher, random: Random, tokenizer: Any = BYTES, most: int = 400) -> str | None:
    """Return a random answer, or None if it has more than ``most`` tokens. Closing tokens are preferred."""
    ends = {END, OTHER_END} if tokenizer is BYTES else {tokenizer.eos_token_id}
    closing = {tokenizer.convert_tokens_to_ids(text) for text in ('"', "}", "]", "]}", "}}", '"}')} | ends
    tokens: list[int] = []
    while len(tokens) < most:
        choice = np.flatnonzero(matcher.allowed()).tolist()
        assert choice
        preferred = [token_id for token_id in choice if token_id in closing]
        token_id = random.choice(preferred if preferred and random.random() < 0.4 else choice)
        matcher.accept(token_id)
        if token_id in ends:
            return str(tokenizer.decode(tokens))
        tokens.append(token_id)
    return None


# Answers satisfy their constraint


def test_answers_satisfy_a_hundred_random_schemas(real_tokenizer: Any) -> None:
    end, finished, texts = real_tokenizer.eos_token_id, 0, set()
    for seed in range(100):
        random = Random(seed)
        schema = random_schema(random)
        Draft202012Validator.check_schema(schema)
        constraint = Constraint.from_schema(schema)
        # As decimals, 0.3 is a multiple of 0.1.
        judge = Draft202012Validator(json.loads(json.dumps(schema), parse_float=Decimal))
        for _ in range(2):
            matcher = compile_constraint(real_tokenizer, constraint, len(real_tokenizer) + 64, [end])
            text = write(matcher, random, real_tokenizer)
            if text is not None:
                finished += 1
                texts.add(text)
                judge.validate(json.loads(text, parse_float=Decimal))
    assert finished > 180
    assert len(texts) > 100


PATTERNS = [
    r"[a-z]{2,4}",
    r"^\(?[0-9]{3}\)?[- ][0-9]{4}$",
    r"(yes|no|maybe)( (yes|no|maybe)){0,3}",
    r"a/b\\[/\\]?",
    r"(?i)hello",
    r"a|ab|abc",
    r"[^\n]{1,3}\n[àé]{2}",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_answers_match_the_whole_pattern(pattern: str) -> None:
    random, finished = Random(1), 0
    for _ in range(20):
        text = write(matcher_of(Constraint("regex", pattern=pattern)), random)
        if text is not None:
            finished += 1
            assert re.fullmatch(pattern, text)
    assert finished >= 15


def test_a_pattern_matches_from_the_first_letter_to_the_last() -> None:
    constraint = Constraint("regex", pattern="b+c?")
    assert [text for text in ("b", "bb", "bbc", "", "ab", "bca", "c") if accepts(constraint, text)] == [
        "b",
        "bb",
        "bbc",
    ]


def test_choices_are_the_only_answers() -> None:
    choices = ("a", "ab", "a.b", "(", "Zürich", "two\nlines", '"', "\\d", "a|b")
    constraint = Constraint("choice", choices=choices)
    others = ("", "axb", "abc", "a.", "7", "two", "zürich", "b", "|")
    assert [text for text in (*choices, *others) if accepts(constraint, text)] == list(choices)
    random = Random(2)
    written = {write(matcher_of(constraint), random) for _ in range(300)}
    assert {"a", "ab", "a|b", "Zürich"} <= written <= set(choices)


def test_json_object_is_any_object() -> None:
    random, finished = Random(3), 0
    for _ in range(20):
        text = write(matcher_of(Constraint("json_object")), random)
        if text is not None:
            finished += 1
            assert isinstance(json.loads(text), dict)
    assert finished >= 10
    assert accepts(Constraint("json_object"), '{"a": [1, {"b":null}], "c":"é"}')
    assert not any(accepts(Constraint("json_object"), text) for text in ("[]", '"a"', "1", "", '{"a":1', "{} {}"))


def test_spaces_come_one_at_a_time() -> None:
    constraint = Constraint.from_schema({"type": "object", "additionalProperties": {"type": "integer"}})
    assert accepts(constraint, '{"a": 1, "b":2}')
    assert accepts(constraint, '{ "a":1 }')
    for text in ('{"a":  1}', '{"a":1,  "b":2}', '{"a":\n1}', '{  "a":1}', ' {"a":1}', '{"a":1} '):
        assert not accepts(constraint, text), text


def test_true_is_any_json_and_the_order_of_properties_is_kept() -> None:
    assert all(accepts(Constraint.from_schema(True), text) for text in ("1", "null", '["a"]', "{}"))
    schema = (
        '{"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"b": {}, "a": {}}, "required": ["a"]}'
    )
    constraint = Constraint.from_schema(schema)
    assert constraint.schema == '{"properties":{"b":{},"a":{}},"required":["a"]}'
    assert constraint == Constraint.from_schema(json.loads(schema)) == Constraint("json_schema", schema=schema)
    assert accepts(constraint, '{"b":1,"a":2}')
    assert not accepts(constraint, '{"a":1,"b":2}')


def test_a_schema_may_refer_to_itself() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#/$defs/x~1y%25"}}, "additionalProperties": False}
    constraint = Constraint.from_schema(
        {"$id": "https://example.com/", "$defs": {"x/y%": tree}, "$ref": "#/$defs/x~1y%25"}
    )
    assert accepts(constraint, '{"next":{"next":{}}}')
    assert not accepts(constraint, '{"next":1}')


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "format": "date"}, '"2026-02-28"', '"2026-02-30"'),
        ({"type": "string", "format": "ipv4"}, '"10.0.0.1"', '"10.0.0.256"'),
        ({"type": "string", "pattern": "b"}, '"abc"', '"acc"'),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1.5}, "1.5", "0"),
        ({"type": "number", "multipleOf": 0.05}, "0.15", "0.16"),
        ({"type": "integer", "multipleOf": 7, "minimum": 1}, "14", "0"),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, "1", "null"),
        ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, "4", "6"),
        ({"$defs": {"a": {"type": "integer"}}, "$ref": "#/$defs/a", "minimum": 3}, "4", "2"),
        (
            {"type": "object", "patternProperties": {"^a": {"type": "null"}}, "additionalProperties": False},
            '{"ab":null}',
            '{"b":null}',
        ),
        ({"type": "object", "required": ["a", "b"], "minProperties": 2, "x-order": 1}, '{"a":1,"b":1}', '{"a":1}'),
    ],
    ids=json.dumps,
)
def test_keywords_are_enforced(schema: Any, good: str, bad: str) -> None:
    constraint = Constraint.from_schema(schema)
    assert accepts(constraint, good)
    assert not accepts(constraint, bad)


# End tokens and vocabularies


def test_every_end_token_can_end_a_complete_answer_and_nothing_else_can_follow() -> None:
    constraint = Constraint("regex", pattern="ab+")
    for end in (END, OTHER_END):
        matcher = matcher_of(constraint)
        for letter, whole in (("a", False), ("b", True), ("b", True)):
            matcher.accept(ids(letter)[0])
            assert [matcher.allowed()[END], matcher.allowed()[OTHER_END], matcher.ended] == [whole, whole, False]
        matcher.accept(end)
        assert matcher.ended
        assert np.flatnonzero(matcher.allowed()).tolist() == sorted([END, OTHER_END])
        with pytest.raises(EngineError):
            matcher.accept(ids("b")[0])
    matcher = matcher_of(Constraint("regex", pattern="ab{2}"))
    for token_id in ids("abb"):
        assert not matcher.ended
        matcher.accept(token_id)
    assert matcher.ended
    assert np.flatnonzero(matcher.allowed()).tolist() == sorted([END, OTHER_END])


def test_an_end_token_that_is_a_letter_ends_the_answer_and_is_not_text() -> None:
    letter = ids("b")[0]
    matcher = compile_constraint(BYTES, Constraint("regex", pattern="a[bc]*"), VOCABULARY, [END, letter])
    assert not matcher.allowed()[letter]
    matcher.accept(ids("a")[0])
    assert matcher.allowed()[letter]
    matcher.accept(letter)
    assert matcher.ended
    # The end token of the tokenizer does not end the answer if the model has a different one.
    matcher = compile_constraint(BYTES, Constraint("regex", pattern="(?s).*"), VOCABULARY, [OTHER_END])
    assert not matcher.allowed()[END]
    assert matcher.allowed()[OTHER_END]


@pytest.mark.parametrize("vocabulary", [len(BYTES) - 2, len(BYTES), len(BYTES) + 100])
def test_the_mask_has_the_length_of_the_models_vocabulary(vocabulary: int) -> None:
    matcher = compile_constraint(BYTES, Constraint("regex", pattern="(?s).+"), vocabulary, [END])
    assert matcher.allowed().shape == (vocabulary,)
    assert matcher.allowed().dtype == np.bool_
    assert matcher.allowed()[:256].sum() > 100
    assert not matcher.allowed()[len(BYTES) :].any()
    for token_id in (vocabulary, len(BYTES) + 5, -1):
        with pytest.raises(EngineError, match="not allowed"):
            matcher.accept(token_id)


@pytest.mark.parametrize("count", range(1, 13))
def test_an_answer_that_was_cut_continues_where_it_ended(count: int) -> None:
    schema = Constraint.from_schema({"const": {"a": "é, 3 €"}})
    whole = '{"a": "é, 3 €"}'
    # The first part is text, the rest is tokens. The last token can be a part of a character.
    tokens = tuple(ids(whole)[4 : 4 + count])
    matcher = compile_constraint(BYTES, schema, VOCABULARY, [END], (whole[:4], tokens))
    for token_id in ids(whole)[4 + count :]:
        matcher.accept(token_id)
    assert matcher.allowed()[END]


def test_a_prefix_that_does_not_match_or_is_complete_is_refused() -> None:
    choice = Constraint("choice", choices=("yes", "no"))
    for begun in (("yes, ", ()), ("", tuple(ids("x"))), ("", (END,))):
        with pytest.raises(InvalidRequestError, match="does not start as the choice requires"):
            compile_constraint(BYTES, choice, VOCABULARY, [END], begun)
    with pytest.raises(InvalidRequestError, match="text already matches the choice"):
        compile_constraint(BYTES, choice, VOCABULARY, [END], ("yes", ()))
    more = compile_constraint(BYTES, Constraint("regex", pattern="a+"), VOCABULARY, [END], ("a", ()))
    assert more.allowed()[END]


def is_accepted(tokenizer: Any, text: str, reasoning: Dialect) -> bool:
    """Whether ``text`` is allowed as a complete answer after a prompt that opens the reasoning."""
    schema, end = Constraint.from_schema({"type": "integer"}), min(tokenizer.all_special_ids or [END])
    matcher = compile_constraint(tokenizer, schema, len(tokenizer), [end], reasoning=reasoning)
    for token_id in tokenizer(text, add_special_tokens=False).input_ids:
        if not matcher.allowed()[token_id]:
            return False
        matcher.accept(token_id)
    return bool(matcher.allowed()[end])


@pytest.mark.parametrize("has_tokens", [True, False])
@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("It is {5}: < 6 </ think>.\n</think>\n\n5", True),
        ("</think>5", True),
        ("It is 5", False),
        ("5", False),
        ("</think>five", False),
        ("It is <tool_call>5</think>5", False),
        ("</think>\n\n\n5", False),
    ],
)
def test_an_answer_starts_after_the_reasoning(real_tokenizer: Any, has_tokens: bool, text: str, fits: bool) -> None:
    tokenizer = BYTES if has_tokens else real_tokenizer
    assert ("</think>" in tokenizer.get_added_vocab()) == has_tokens
    assert is_accepted(tokenizer, text, DIALECTS["4.2"]) == fits


def test_any_closing_marker_ends_the_reasoning_but_not_the_text_of_a_closing_token(real_tokenizer: Any) -> None:
    for mark in DIALECTS["3.2"].of("reasoning_close"):
        assert is_accepted(real_tokenizer, f"So: {mark} 5", DIALECTS["3.2"])
    matcher = compile_constraint(BYTES, Constraint("json_object"), VOCABULARY, [END], reasoning=DIALECTS["4.2"])
    *before, last = [BYTES.convert_tokens_to_ids(letter) for letter in "</think>"]
    for token_id in before:
        matcher.accept(token_id)
    assert not matcher.allowed()[last]


def test_a_token_that_is_not_allowed_is_refused() -> None:
    matcher = matcher_of(Constraint("choice", choices=("ab",)))
    for token_id in (ids("b")[0], END, OTHER_END, BYTES.convert_tokens_to_ids("<|im_start|>")):
        with pytest.raises(EngineError, match=f"Token {token_id} is not allowed by the choice"):
            matcher.accept(token_id)
    matcher.accept(ids("a")[0])
    assert np.flatnonzero(matcher.allowed()).tolist() == ids("b")


def test_a_tokenizer_is_converted_once_and_its_conversion_is_freed_with_it() -> None:
    tokenizer = byte_tokenizer()
    assert prepare(tokenizer, [END, OTHER_END]) is prepare(tokenizer, [OTHER_END, END])
    assert prepare(tokenizer, [OTHER_END]) is not prepare(tokenizer, [END])
    before = len(structured_output._converted)
    del tokenizer
    gc.collect()
    assert len(structured_output._converted) == before - 1


def test_tokenizers_that_cannot_be_converted_are_refused() -> None:
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))
    with pytest.raises(InvalidRequestError, match="tokenizer"):
        compile_constraint(words, Constraint("json_object"), 2, [0])


def test_a_vocabulary_that_cannot_write_the_answer_is_an_error() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(InvalidRequestError, match="no token of the model is allowed"):
        compile_constraint(tokenizer, Constraint("choice", choices=("~",)), 10, [0])


# Refused constraints


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"uniqueItems": True}, "uniqueItems at # "),
        ({"properties": {"a": {"not": {}}}}, "not at #/properties/a "),
        ({"anyOf": [{}, {"if": {}}]}, "if at #/anyOf/1 "),
        ({"minimun": 3}, "minimun"),
        ({"x-guidance": {"lenient": True}}, "x-guidance"),
        ({"items": {"contains": {}}}, "contains at #/items "),
        ({"$anchor": "a"}, r"\$anchor"),
        ({"items": [{}]}, "#/items must be an object"),
        ({"properties": {"a": 3}}, "#/properties/a must be an object"),
        ({"type": "string", "format": "color"}, "format at # of the schema must be one of date-time"),
        ({"minProperties": 2}, "minProperties"),
        ({"multipleOf": 12.345}, "multipleOf"),
        ({"maxItems": 10**9}, "maxItems at # of the schema must be at most 100,000"),
        ({"properties": {"a": {"pattern": "a" * 5000}}}, "pattern"),
        ({"patternProperties": {"(a{1,1000}){1,1000}": {}}}, "1,000,000"),
        ({"$ref": "https://example.com/a.json"}, "example.com"),
        ({"$ref": "#/$defs/a"}, r"a reference to '#/\$defs/a'"),
        ({"default": {"not": {}}, "$ref": "#/default"}, "a reference to '#/default'"),
        ({"properties": {f"p{index}": {"pattern": f"a{index}"} for index in range(13)}}, "13 different patterns"),
        ({"patternProperties": {f"^a{index}": {} for index in range(13)}}, "13 different patterns"),
        ({"const": float("nan")}, "not JSON"),
        ({"const": {1, 2}}, "not JSON"),
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        (False, "must be a JSON object"),
        ('"\ud800"', "not JSON"),
        ("1" * 5000, "not JSON"),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode(),
)
def test_schemas_with_unsupported_keywords_are_refused_at_once(schema: Any, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        Constraint.from_schema(schema)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "foo"}, "Invalid type: foo"),
        ({"minimum": "a"}, "minimum"),
        ({"required": "a"}, "required"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum .5. is greater than maximum .3."),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "integer", "minimum": -(10**30), "maximum": 10**30}, "range"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"enum": []}, "anyOf is empty"),
    ],
    ids=json.dumps,
)
def test_schemas_without_a_grammar_are_refused(schema: Any, words: str) -> None:
    constraint = Constraint.from_schema(schema)
    with pytest.raises(InvalidRequestError, match=f"json_schema cannot be used: .*{words}"):
        matcher_of(constraint)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(?=a)b", "look-around"),
        (r"(a)\1", "backreferences"),
        (r"\bfoo", "lookarounds"),
        ("a(", "unclosed group"),
        ("[a", "unclosed character class"),
        (r"\p{Nothing}", "Unicode property not found"),
        (r"[^\s\S]", "no text can satisfy it"),
        ("\ud800", "surrogates"),
    ],
)
def test_patterns_that_are_not_supported_say_why(pattern: str, words: str) -> None:
    constraint = Constraint("regex", pattern=pattern)
    with pytest.raises(InvalidRequestError, match=f"regex cannot be used: .*{words}"):
        matcher_of(constraint)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "xml"}, "json_object, json_schema, regex or choice"),
        ({"kind": "regex"}, "1 to 4,000"),
        ({"kind": "regex", "pattern": "a" * 4001}, "1 to 4,000"),
        ({"kind": "regex", "pattern": "a\\"}, "backslash"),
        ({"kind": "regex", "pattern": "a{1000000}"}, "1,000,000 parts"),
        ({"kind": "regex", "pattern": r"((\p{Lu}{3}|[(]{2})\({1,10}x?){4000}"}, "64,000 parts|68,000 parts"),
        ({"kind": "choice"}, "1 to 1,000 choices"),
        ({"kind": "choice", "choices": ("a", "")}, "none empty"),
        ({"kind": "choice", "choices": ("a", 3)}, "1 to 1,000 choices"),
        ({"kind": "choice", "choices": "abc"}, "1 to 1,000 choices"),
        ({"kind": "choice", "choices": tuple(map(str, range(1001)))}, "1 to 1,000 choices"),
        ({"kind": "choice", "choices": ("é" * 8193,)}, "16,384 bytes"),
        ({"kind": "json_schema"}, "not JSON"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_values_are_checked(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        Constraint(**values)


def test_large_but_reasonable_values_are_accepted() -> None:
    for pattern in (r"a\\", r"[a-z]{0,500}[0-9]{0,500}", r"(\w{1,100}\s){1,100}", "(?:" * 60 + "a" + "){1}" * 60):
        matcher_of(Constraint("regex", pattern=pattern))
    matcher_of(Constraint("choice", choices=tuple(f"choice {index}" for index in range(1000))))
    deep: Any = {"type": "string"}
    for _ in range(40):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    matcher_of(Constraint.from_schema(deep))
    matcher_of(Constraint.from_schema({"enum": [f"value {index}" for index in range(3000)]}))
    matcher_of(Constraint.from_schema({"properties": {f"p{index}": {"type": "number"} for index in range(1000)}}))


# Bombs


def nested(depth: int) -> str:
    """Return the text of a schema. Python's own JSON encoder cannot nest as deep."""
    return '{"properties":{"a":' * depth + "{}" + "}}" * depth


def over_another(number: int) -> Any:
    return {"allOf": [{"type": "string", "pattern": f"a.{{{index}}}b"} for index in range(5, 5 + number)]}


def chain(length: int) -> Any:
    names = [f"d{index}" for index in range(length)]
    links = {name: {"properties": {"a": {"$ref": f"#/$defs/{next_}"}}} for name, next_ in pairwise(names)}
    return {"$defs": {**links, names[-1]: {}}, "$ref": "#/$defs/d0"}


def doubling(length: int) -> Any:
    links = {
        f"d{index}": {"allOf": [{"$ref": f"#/$defs/d{index + 1}"}, {"$ref": f"#/$defs/d{index + 1}"}]}
        for index in range(length)
    }
    return {
        "$defs": {**links, f"d{length}": {"type": "object"}},
        "$ref": "#/$defs/d0",
        "minProperties": 1,
        "properties": {"a": {}},
    }


def either_and_both(number: int) -> Any:
    branches = (
        {"required": [f"p{index}"], "properties": {f"p{index}": {"type": "string"}}} for index in range(3 * number)
    )
    return {
        "type": "object",
        "allOf": [{"anyOf": list(three)} for three in zip(branches, branches, branches, strict=True)],
    }


LOOP: dict[str, Any] = {}
LOOP["items"] = LOOP
BOMBS: dict[str, Any] = {
    "1,000 deep": nested(1000),
    "100,000 deep": nested(100_000),
    "70 deep": nested(70),
    "a megabyte": json.dumps({"description": "x" * 1_000_000}),
    "a megabyte of brackets": "[" * 1_000_000,
    "a megabyte as a value": {"enum": list(range(150_000))},
    "a value in itself": LOOP,
    "a loop of nothing": {"$ref": "#"},
    "a loop of two": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "a loop of all": {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}]}}, "$ref": "#/$defs/a"},
    "a long chain": chain(900),
    "doubling": doubling(40),
    "patterns over another": over_another(12),
    "too many patterns over another": over_another(30),
    "either and both": either_and_both(20),
    "1,000 million items": {"type": "array", "maxItems": 10**9},
    "a long multiple": {"type": "integer", "multipleOf": 999_983},
    "two multiples over another": {"allOf": [{"type": "integer", "multipleOf": number} for number in (9973, 9967)]},
    "multiples over another": {"allOf": [{"type": "integer", "multipleOf": number} for number in (9973, 9967, 9949)]},
}
PATTERN_BOMBS = {
    "counted twice": "(a{1,1000}){1,1000}",
    "a million": "a{1000000}",
    "a number of 3,000 digits": "a{" + "9" * 3000 + "}",
    "2,000 groups": "(" * 1900 + "a" + ")" * 1900,
    "900 maybes": "a?" * 900 + "a" * 900,
    "long classes": "".join(f"[{chr(97 + index % 26)}-z]{{0,50}}" for index in range(150)),
    "26 searches": "|".join(
        f"(.*{letter}.{{{index + 3}}}{letter}.*)" for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz")
    ),
}


async def longest_gap(stop: asyncio.Event) -> float:
    longest, before = 0.0, time.monotonic()
    while not stop.is_set():
        await asyncio.sleep(0.005)
        longest, before = max(longest, time.monotonic() - before), time.monotonic()
    return longest


async def explode(tokenizer: Any, kind: str, bomb: Any) -> None:
    end, vocabulary = tokenizer.eos_token_id, len(tokenizer)
    prepare(tokenizer, [end])
    stop = asyncio.Event()
    ticker = asyncio.create_task(longest_gap(stop))
    await asyncio.sleep(0.02)
    start = time.monotonic()
    with pytest.raises(InvalidRequestError):
        constraint = Constraint.from_schema(bomb) if kind == "schema" else Constraint("regex", pattern=bomb)
        matcher = await compile_in_time(tokenizer, constraint, vocabulary, [end])
        for _ in range(50):
            matcher.accept(int(np.flatnonzero(matcher.allowed())[0]))
    assert time.monotonic() - start < 2.5
    stop.set()
    assert await ticker < 0.5
    # A compilation cannot be ended. Wait until both threads are free, so that the next test can use them.
    free, loop = threading.Barrier(2, timeout=5), asyncio.get_running_loop()
    await asyncio.gather(*(loop.run_in_executor(structured_output._compiling, free.wait) for _ in range(2)))


@pytest.mark.parametrize("name", BOMBS)
async def test_schema_bombs_end_in_an_error_without_blocking_the_loop(real_tokenizer: Any, name: str) -> None:
    await explode(real_tokenizer, "schema", BOMBS[name])


@pytest.mark.parametrize("name", PATTERN_BOMBS)
async def test_pattern_bombs_end_in_an_error_without_blocking_the_loop(real_tokenizer: Any, name: str) -> None:
    await explode(real_tokenizer, "pattern", PATTERN_BOMBS[name])


def test_an_object_that_cannot_end_costs_little(real_tokenizer: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "additionalProperties": False}
    matcher = compile_constraint(real_tokenizer, Constraint.from_schema(schema), len(real_tokenizer), [2])
    start = time.thread_time()
    with suppress(InvalidRequestError):
        assert write(matcher, Random(0), real_tokenizer) is None
    assert time.thread_time() - start < 2


async def test_a_slow_compilation_times_out_without_blocking_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    # llguidance takes one or two seconds.
    monkeypatch.setattr(constraint_checks, "MAX_PATTERNS", 100)
    constraint = Constraint.from_schema(over_another(20))
    stop = asyncio.Event()
    ticker = asyncio.create_task(longest_gap(stop))
    start = time.monotonic()
    with pytest.raises(InvalidRequestError, match="json_schema took over 0.1 seconds"):
        await compile_in_time(BYTES, constraint, VOCABULARY, [END], seconds=0.1)
    assert time.monotonic() - start < 0.6
    start = time.monotonic()
    other = await compile_in_time(BYTES, Constraint("json_object"), VOCABULARY, [END])
    assert other.allowed()[ids("{")[0]]
    assert time.monotonic() - start < 0.8, "it waited for the other one"
    stop.set()
    assert await ticker < 0.5


async def test_compile_in_time_gives_the_matcher_and_the_errors() -> None:
    before = threading.active_count()
    matcher = await compile_in_time(BYTES, Constraint("choice", choices=("a",)), VOCABULARY, [END])
    assert np.flatnonzero(matcher.allowed()).tolist() == ids("a")
    with pytest.raises(InvalidRequestError, match="look-around"):
        await compile_in_time(BYTES, Constraint("regex", pattern="(?=a)"), VOCABULARY, [END])
    for _ in range(20):
        await compile_in_time(BYTES, Constraint("json_object"), VOCABULARY, [END])
    assert threading.active_count() <= before + 8


def test_masks_that_take_too_long_end_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "thread_time", count(step=0.1).__next__)
    matcher = matcher_of(Constraint("regex", pattern="a*"))
    with pytest.raises(InvalidRequestError, match="regex needs too much computing time"):
        for _ in range(6):
            matcher.accept(ids("a")[0])
    monkeypatch.setattr(time, "thread_time", count(step=0.001).__next__)
    matcher = matcher_of(Constraint("regex", pattern="a*"))
    for _ in range(300):
        matcher.accept(ids("a")[0])
    # Many fast tokens do not save up time for a slow one.
    monkeypatch.setattr(time, "thread_time", count(step=0.6).__next__)
    with pytest.raises(InvalidRequestError, match="needs too much computing time"):
        matcher.allowed()


def test_a_pattern_that_becomes_too_complex_ends_the_answer(real_tokenizer: Any) -> None:
    pattern = "".join(f"({chr(97 + index % 26)}.{{0,{index}}})?" for index in range(60))
    constraint = Constraint("regex", pattern=pattern)
    matcher = compile_constraint(real_tokenizer, constraint, len(real_tokenizer), [real_tokenizer.eos_token_id])
    with pytest.raises(InvalidRequestError, match="too complex"):
        for seed in range(20):
            write(matcher, Random(seed), real_tokenizer)
