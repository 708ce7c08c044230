"""Tests for the calculator: correct results, and errors for all other text."""

import time
import warnings
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from granite_demo.chat.calculator import MAX_LENGTH, CalculationError, calculate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", "14"),
        ("(2 + 3) * -4", "-20"),
        ("7 // 2 + 7 % 4", "6"),
        ("7 / 2", "3.5"),
        ("0.1 + 0.2", "0.3"),
        ("2 ** 100", str(2**100)),
        ("2^10", "1024"),
        ("6 × 7 − 2 ÷ 2", "41"),
        ("sqrt(16) + abs(-1)", "5"),
        ("round(pi, 2)", "3.14"),
        ("round(2.6)", "3"),
        ("max(1, 2, min(5, 3))", "3"),
        ("log(e) + exp(0) + sin(0) + cos(0)", "3"),
        ("log(8, 2)", "3"),
        ("1_000 + 1", "1001"),
        ("1**10**9", "1"),
        (" 1\n + 1 ", "2"),
    ],
)
def test_results(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "empty"),
        ("1 +", "incomplete"),
        ("1 / 0", "Division by zero"),
        ("9**9**9", "too large"),
        ("10**-9**9", "too large"),
        ("1e999", "too large"),
        ("exp(1000)", "too large"),
        ("(-8) ** 0.5", "not a real number"),
        ("sqrt(-1)", "no result"),
        ("min()", "no result"),
        ("round(1, 10**9)", "digits of round"),
        ("True + 1", "only numbers"),
        ("x + 1", "only numbers"),
        ("(1).real", "only numbers"),
        ("__import__('os')", "only numbers"),
        ("open(1)", "only numbers"),
        ("max(*1)", "only numbers"),
        ("1 if 1 else 2", "only numbers"),
        ("[1][0]", "only numbers"),
        ("1 < 2", "only numbers"),
        ("~1", "only numbers"),
        ("1j", "only numbers"),
        ("(" * 400, "incomplete"),
        ("1+" * MAX_LENGTH, "more than 500"),
    ],
)
def test_text_that_is_not_arithmetic_raises(expression: str, words: str) -> None:
    with pytest.raises(CalculationError, match=words):
        calculate(expression)


@pytest.mark.parametrize("expression", ["9**" * 100 + "9", "2**4096*" * 50 + "1", "(2**4000)**4000"])
def test_large_numbers_raise_quickly(expression: str) -> None:
    start = time.perf_counter()
    with pytest.raises(CalculationError, match="too large"):
        calculate(expression)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("expression", ["1(2)", "(1)(2)", "1if 1else 2"])
def test_syntax_warnings_are_not_logged(expression: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(CalculationError, match="only numbers"):
            calculate(expression)
    assert caught == []


def test_long_expressions_without_nesting() -> None:
    assert calculate("+".join("1" * 250)) == "250"
    assert calculate("-" * 90 + "1") == "1"


@settings(max_examples=300, deadline=None)
@given(st.text("0123456789.+-*/%()^e, maxinsqrtlogpdbcou_", max_size=60))
def test_any_text_has_a_result_or_raises_calculation_error(text: str) -> None:
    with suppress(CalculationError):
        assert calculate(text)
