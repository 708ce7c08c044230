"""What was written as a constraint, without a page."""

from dataclasses import replace

import pytest

from granite_demo.errors import InvalidRequestError
from granite_demo.types.constraints import Constraint
from granite_demo.ui.completion.constraint import (
    EXAMPLE_CHOICES,
    EXAMPLE_SCHEMA,
    PATTERN,
    cut_words,
    shown_values,
    to_constraint,
)
from tests.fakes import READY


def test_each_kind_takes_its_own_box() -> None:
    assert to_constraint("", EXAMPLE_SCHEMA, PATTERN, EXAMPLE_CHOICES) is None
    assert to_constraint(None, EXAMPLE_SCHEMA, PATTERN, EXAMPLE_CHOICES) is None
    assert to_constraint("json_object", EXAMPLE_SCHEMA, PATTERN, EXAMPLE_CHOICES) == Constraint("json_object")
    assert to_constraint("json_schema", EXAMPLE_SCHEMA, PATTERN, EXAMPLE_CHOICES) == Constraint.from_schema(
        EXAMPLE_SCHEMA
    )
    assert to_constraint("regex", EXAMPLE_SCHEMA, PATTERN, EXAMPLE_CHOICES) == Constraint("regex", pattern=PATTERN)
    assert to_constraint("choice", EXAMPLE_SCHEMA, PATTERN, "a\n\n b\n") == Constraint("choice", choices=("a", " b"))


@pytest.mark.parametrize("kind", ["json_schema", "regex", "choice", "xml", 5])
def test_nothing_written_is_refused(kind: object) -> None:
    with pytest.raises(InvalidRequestError):
        to_constraint(kind, "", None, "\n")


def test_a_cut_output_is_said_to_be_cut() -> None:
    constraint = Constraint("json_object")
    assert cut_words(constraint, "stop") == cut_words(None, "length") == ""
    assert "may not be complete" in cut_words(constraint, "length")
    assert "may not be complete" in cut_words(constraint, None)
    assert "stop strings may have cut it" in cut_words(constraint, "stop", ("}",))
    assert cut_words(None, "stop", ("}",)) == ""


def test_the_reason_why_there_are_none_is_shown() -> None:
    (able,) = shown_values(READY)
    (unable,) = shown_values(replace(READY, unable=(("constraints", "Not here."),)))
    assert able["interactive"] is True if isinstance(able, dict) else able.interactive
    assert unable.info == "Not here."
    assert unable.interactive is False
