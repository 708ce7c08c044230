"""Tests that each threat and each fault of the list has a test with its number in the name."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
THREATS, FAULTS = 19, 20


def numbers() -> set[str]:
    """Return the numbers in the names of all tests, such as t01 and f20."""
    found: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found |= set(re.findall(r"(?<=_)[tf]\d\d(?=_)", node.name)) if node.name.startswith("test_") else set()
    return found


@pytest.mark.parametrize(("letter", "last"), [("t", THREATS), ("f", FAULTS)])
def test_every_number_has_a_test(letter: str, last: int) -> None:
    assert {f"{letter}{number:02}" for number in range(1, last + 1)} - numbers() == set()
