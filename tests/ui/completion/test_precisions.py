"""Precision A/B: who may, what is asked for, and what is shown of the result."""

import json
from dataclasses import replace
from math import inf

import pytest

from granite_demo.errors import GraniteDemoError, InvalidRequestError
from granite_demo.types.comparison import ComparedSide, ComparedToken, Comparing, Comparison
from granite_demo.types.model_status import Chosen, ModelStatus
from granite_demo.types.stop import Stop
from granite_demo.ui.completion import precisions
from granite_demo.ui.completion.precision_charts import figure, heat_html, summary_html, worst_html
from granite_demo.ui.completion.precisions import (
    ComparisonStep,
    choices,
    own_precision,
    progress_html,
    shown_values,
    steps,
    to_request,
)
from tests.fakes import READY, SETUP, FakeBackend
from tests.ui.completion.test_token_view import rows, spans

A = ComparedSide("bfloat16", (), 5_000_000_000, 2000.4, 41.52, 12.25)
B = ComparedSide("<nf4>", (), None, 1500.0, None, None)
TOKENS = tuple(
    ComparedToken(index, text, divergence, agree, -0.5, -inf, "x", "<y>")
    for index, (text, divergence, agree) in enumerate(
        [(" b", 0.0, True), (" c", 0.02, True), ("\n=1+1", 3.0, False), (" d", 0.002, False), (" e", inf, False)]
    )
)
RESULT = Comparison(TOKENS, A, B)
TEXT = "a b c\n=1+1 d e"


def ready(precision: str, quantization: str) -> ModelStatus:
    setup = replace(SETUP, precision=Chosen(precision, ""), quantization=Chosen(quantization, ""))
    return replace(READY, setup=setup)


@pytest.mark.parametrize(
    ("precision", "quantization", "name"),
    [
        ("bfloat16", "none", "bfloat16"),
        ("float32", "none", "float32"),
        ("bfloat16", "nf4", "int4 nf4 (bitsandbytes)"),
        ("float16", "none", "Automatic"),
    ],
)
def test_the_models_own_precision_comes_first(precision: str, quantization: str, name: str) -> None:
    status = ready(precision, quantization)
    assert own_precision(status) == name
    names = choices(status)
    assert "Automatic" not in names
    assert len(set(names)) == len(names) >= 2
    assert name == "Automatic" or names[0] == name


def test_quantized_ones_only_where_they_can_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "find_spec", lambda name: None)
    assert choices(READY) == ["bfloat16", "float32"]


def test_what_is_chosen_stays_when_the_model_comes_back() -> None:
    _, _, a, b = shown_values(READY, ["float32", "bfloat16"])
    assert (a.value, b.value) == ("float32", "bfloat16")
    _, _, a, b = shown_values(READY, ["gone", "bfloat16"])
    assert (a.value, b.value) == ("bfloat16", "float32")


def test_where_it_cannot_be_had_it_says_why() -> None:
    backend = FakeBackend()
    backend.state = replace(READY, unable=(("comparing precisions", "Not here."),))
    reason, run, *_ = shown_values(backend.state)
    assert "Not here." in reason.value
    assert not run.interactive
    with pytest.raises(InvalidRequestError, match="Not here"):
        to_request(backend, "text", "bfloat16", "float32")


def test_a_request_names_the_loaded_model_in_two_precisions() -> None:
    request = to_request(FakeBackend(), TEXT, "bfloat16", "int4 nf4 (bitsandbytes)")
    assert (request.text, request.reference.model, request.other.model) == (TEXT, "fake", "fake")
    assert (request.reference.dtype, request.reference.quantization) == ("bfloat16", "none")
    assert request.other.quantization == "nf4"
    for text, a, b in ((" ", "bfloat16", "float32"), (TEXT, "bfloat16", "bfloat16"), (TEXT, "x", "y"), (TEXT, [], 1)):
        with pytest.raises(InvalidRequestError):
            to_request(FakeBackend(), text, a, b)


async def test_progress_then_the_result() -> None:
    backend = FakeBackend()
    backend.comparison, backend.delay = [Comparing("one", 0.5), RESULT], 0.2
    request = to_request(backend, TEXT, "bfloat16", "float32")
    found = [step async for step in steps(backend, lambda: request, Stop())]
    assert ComparisonStep(Comparing("one", 0.5)) in found
    assert found[-1] == ComparisonStep(None, RESULT)


async def test_cancel_and_errors_end_it() -> None:
    backend, stop = FakeBackend(), Stop()
    request = to_request(backend, TEXT, "bfloat16", "float32")
    backend.comparison, backend.delay = [Comparing("one", 0.5), RESULT], 0.5
    stop.set()
    assert [step async for step in steps(backend, lambda: request, stop)] == [ComparisonStep(None, note="Cancelled.")]
    backend.comparison, backend.error = [], GraniteDemoError("It is full.")
    assert [s async for s in steps(backend, lambda: request, Stop())][-1].note == "It is full."
    backend.error = RuntimeError("secret")
    last = [step async for step in steps(backend, lambda: request, Stop())][-1]
    assert last.kind == "error"
    assert "secret" not in last.note


def test_progress_is_shown() -> None:
    assert 'value="0.250"' in progress_html(Comparing("<reading>", 0.25))
    assert "&lt;reading&gt;" in progress_html(Comparing("<reading>", 0.25))
    assert "value" not in progress_html(None)


def test_the_heat_map_shows_the_whole_text() -> None:
    markup = heat_html(RESULT, TEXT)
    found = spans(markup)
    assert [text for _, text in found] == ["a", " b", " c", "↵\n=1+1", " d", " e"]
    assert [classes[0] for classes, _ in found] == ["none", "s0", "s3", "s5", "s2", "s5"]
    table = rows(markup)
    assert table[0] is None
    assert table[3] == [2, "3", False, -0.5, "cut", "x", "<y>", ["bfloat16", "<nf4>"]]
    assert table[5][1] == "∞"


def test_figures_of_both_sides() -> None:
    shown = summary_html(replace(RESULT, tokens=TOKENS[:4]))
    assert "<dd>0.755 nats a token</dd>" in shown
    assert "<dd>50.0%</dd>" in shown
    assert "<dd>4</dd>" in shown
    assert "5.0 GB</td><td>—" in shown
    assert "12.25</td><td>—" in shown
    assert "41.5 tokens/s</td><td>—" in shown
    assert "2,000 tokens/s" in shown
    assert "&lt;nf4&gt;" in shown
    assert "<nf4>" not in shown


def test_the_worst_places_first() -> None:
    shown = worst_html(RESULT)
    assert [shown.index(f"<td>{place}</td>") for place in (6, 4, 3, 5, 2)] == sorted(
        shown.index(f"<td>{place}</td>") for place in (6, 4, 3, 5, 2)
    )
    assert "<mark>↵=1+1</mark>" in shown
    assert "&lt;y&gt;" in shown
    assert "<y>" not in shown
    assert worst_html(replace(RESULT, tokens=TOKENS * 10)).count("<mark>") == 10
    assert "nothing to compare" in worst_html(replace(RESULT, tokens=()))


def test_the_figure_is_whole_numbers_on_a_log_scale() -> None:
    drawn = json.loads(figure(RESULT).to_json())
    line, rings = drawn["data"]
    assert drawn["layout"]["yaxis"]["type"] == "log"
    assert line["x"] == [2, 3, 4, 5, 6]
    assert line["y"] == [1e-8, 0.02, 3.0, 0.002, 1e3]
    assert rings["x"] == [4, 5, 6]
    assert "&lt;" not in line["text"][0]
