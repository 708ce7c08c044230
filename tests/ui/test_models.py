"""What a visitor's choice of a model means."""

from dataclasses import replace
from typing import Any

import pytest

from granite_demo.errors import InvalidRequestError
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.model_status import ModelChoice
from granite_demo.ui.models import FIXED, PRECISION_OPTIONS, load_options, models_html, offered
from tests.fakes import READY

SMALL = ModelChoice("small", "Granite · small", "Small", 7 * 10**8, False, "fits")
LARGE = ModelChoice("large", "Granite · large", "Large <b>", 6 * 10**10, False, "does not fit", "It needs 60 GB.")
HERE = ModelChoice("fake", "Granite · fake", "Fake", 2 * 10**9, True, "tight")


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


def test_the_models_are_in_groups_by_place() -> None:
    other = ModelChoice("other", "Granite · other", "Other", 3 * 10**9, True, "fits")
    listed = models_html((LARGE, SMALL, other, HERE), READY)
    order = [
        listed.index(text)
        for text in ("Loaded", ">Fake<", "On this disk", ">Other<", "To download", ">Small<", "Large")
    ]
    assert order == sorted(order)
    assert "Large &lt;b&gt;" in listed


def test_only_a_download_has_a_question_with_its_size() -> None:
    listed = models_html((LARGE, SMALL, HERE), READY)
    assert listed.count('class="ask"') == 1
    assert "Download 0.7 GB and load it?" in listed


def test_what_does_not_fit_is_off_with_the_reason() -> None:
    listed = models_html((LARGE,), READY)
    assert 'aria-disabled="true"' in listed
    assert "does not fit" in listed
    assert "It needs 60 GB." in listed
    assert FIXED in models_html((), READY)


def test_the_offer_is_a_model_that_fits_and_one_on_this_disk_first() -> None:
    assert offered((LARGE, SMALL), "sample") == SMALL
    assert offered((LARGE, SMALL, HERE), "sample") == HERE
    assert offered((LARGE,), "sample") is None
    sample = replace(HERE, name="sample", size=1)
    assert offered((sample, SMALL), "sample") == SMALL
    assert offered((sample,), "sample") is None
