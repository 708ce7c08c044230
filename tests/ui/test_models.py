"""What a visitor's choice of a model means."""

from typing import Any

import pytest

from granite_demo.errors import InvalidRequestError
from granite_demo.types.load_options import LoadOptions
from granite_demo.ui.models import PRECISION_OPTIONS, load_options


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("Automatic", LoadOptions("m")),
        ("bfloat16", LoadOptions("m", dtype="bfloat16", quantization="none")),
        ("float32", LoadOptions("m", dtype="float32", quantization="none")),
        ("int8 (bitsandbytes)", LoadOptions("m", quantization="int8")),
        ("int4 nf4 (bitsandbytes)", LoadOptions("m", quantization="nf4")),
        ("int4 fp4 (bitsandbytes)", LoadOptions("m", quantization="fp4")),
    ],
)
def test_each_precision_of_the_list(precision: str, expected: LoadOptions) -> None:
    assert load_options("m", precision, "auto", 0) == expected


def test_the_list_has_no_other_precision() -> None:
    assert len(PRECISION_OPTIONS) == 6


def test_attention_and_context_are_taken() -> None:
    assert load_options("m", "Automatic", "sdpa", 4096) == LoadOptions("m", attention="sdpa", context=4096)
    assert load_options("m", "Automatic", "auto", None).context is None


def test_a_copy_is_kept_only_for_a_true_tick() -> None:
    assert load_options("m", "Automatic", "auto", 0, True).keep_quantized
    assert not load_options("m", "Automatic", "auto", 0, "yes").keep_quantized


@pytest.mark.parametrize(
    ("precision", "attention", "context"),
    [("int2", "auto", 0), ("Automatic", "magic", 0), ("Automatic", "auto", -1), ("Automatic", "auto", "many")],
)
def test_values_the_page_does_not_offer_are_refused(precision: str, attention: str, context: Any) -> None:
    with pytest.raises(InvalidRequestError):
        load_options("m", precision, attention, context)
