"""Side by side: what is asked of each side, and what both show."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr
import pytest

from granite_demo.access import Access
from granite_demo.backends.side_by_side import SideBySideBackend
from granite_demo.chat.answer import Answer
from granite_demo.errors import InvalidRequestError
from granite_demo.types.engine_kinds import DYNAMIC
from granite_demo.types.events import Finish, ReasoningDelta, TextDelta, Timings, Usage
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.messages import Controls, Message, Switches
from granite_demo.types.model_status import BESIDE, Chosen, EngineSetup, ModelStatus
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams
from granite_demo.types.stop import Stop
from granite_demo.ui.chat.side_by_side import answers, costs_html, difference_words, layout, shown_values, to_request
from granite_demo.ui.streaming import Snapshot, Visit
from tests.fakes import READY, SETUP, FakeBackend

SIDE: tuple[Any, ...] = ("", 0, 1, "", 512, "", "Automatic")
"""Thinking, temperature, top-p, seed, tokens, model, precision as the page has them first."""


def side(**values: Any) -> list[Any]:
    names = ("thinking", "temperature", "top_p", "seed", "max_tokens", "model", "precision")
    return [values.get(name, value) for name, value in zip(names, SIDE, strict=True)]


def ask(backend: FakeBackend, **values: Any) -> GenerationRequest:
    return to_request(backend, backend, "Why?", None, side(**values), lambda: None)


def test_the_settings_become_a_request(backend: FakeBackend) -> None:
    values = side(thinking="low", temperature=0.7, top_p=0.9, seed=" 7 ", max_tokens=9)
    request = to_request(backend, backend, "Why?", " Be kind. ", values, lambda: None)
    assert request == GenerationRequest(
        (Message("system", "Be kind."), Message("user", "Why?")),
        sampling=SamplingParams(temperature=0.7, top_p=0.9, seed=7, max_tokens=9),
        controls=Controls(thinking="low"),
    )


def test_the_first_settings_ask_the_loaded_model_as_it_is(backend: FakeBackend) -> None:
    request = ask(backend)
    assert (request.controls, request.model) == (Controls(), None)
    assert request.messages == (Message("user", "Why?"),)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model": "two"}, LoadOptions("two")),
        ({"model": "two", "precision": "int4 nf4 (bitsandbytes)"}, LoadOptions("two", quantization="nf4")),
        ({"precision": "float32"}, LoadOptions("one", dtype="float32", quantization="none")),
    ],
)
def test_another_model_or_precision(backend: FakeBackend, values: dict[str, Any], expected: LoadOptions) -> None:
    backend.state = replace(READY, model="one")
    assert ask(backend, **values).model == expected


@pytest.mark.parametrize("values", [{"model": "two"}, {"precision": "float32"}])
def test_another_model_takes_the_right_to_load(backend: FakeBackend, values: dict[str, Any]) -> None:
    backend.state = replace(READY, model="one")
    access = Access(public=True, token="sesame")
    with pytest.raises(InvalidRequestError, match="not the admin token"):
        to_request(backend, backend, "Why?", None, side(**values), lambda: access.check("guess", ""))
    assert to_request(backend, backend, "Why?", None, side(**values), lambda: access.check("sesame", "")).model


@pytest.mark.parametrize("model", ["/etc", "three"])
def test_a_model_that_is_not_offered_is_refused(backend: FakeBackend, model: str) -> None:
    with pytest.raises(InvalidRequestError, match="Only the models in the list"):
        ask(backend, model=model)


@pytest.mark.parametrize("seed", ["-1", "1.5", "many", "²", "9" * 20])
def test_a_seed_that_is_no_number_is_refused(backend: FakeBackend, seed: str) -> None:
    with pytest.raises(InvalidRequestError, match="seed must be a whole number"):
        ask(backend, seed=seed)


@pytest.mark.parametrize("question", [None, "", "  "])
def test_an_empty_question_is_refused(backend: FakeBackend, question: str | None) -> None:
    with pytest.raises(InvalidRequestError, match="Write a question"):
        to_request(backend, backend, question, None, side(), lambda: None)


def test_the_levels_of_thinking_are_the_models(backend: FakeBackend) -> None:
    status = replace(READY, switches=Switches(thinking=("off", "full")))
    thinking, models, *_ = shown_values(backend, status)
    assert [value for _, value in thinking.choices] == ["", "off", "full"]
    assert thinking.interactive
    assert [value for _, value in models.choices] == ["", "one", "two"]


def test_without_levels_the_reason_is_shown(backend: FakeBackend) -> None:
    thinking = shown_values(backend, READY)[0]
    assert not thinking.interactive
    assert thinking.info == "Fake model has no thinking to switch."


Shown = dict[str, Any]
"""The values of the panel by name: ``difference``, and ``thoughts``, ``thinking``, ``answer``, ``costs`` of A and B."""


async def run(backend: FakeBackend | SideBySideBackend, *sides: list[Any], access: Access | None = None) -> list[Shown]:
    """All that the panel shows, one state after each update."""
    with gr.Blocks(analytics_enabled=False):
        tab = layout(backend, backend, Access())
    names = {tab.difference: "difference"}
    for side, column in zip("AB", tab.columns, strict=True):
        parts = ("thoughts", "thinking", "answer", "costs")
        names |= {part: f"{name} {side}" for part, name in zip(column.screen, parts, strict=True)}
    allow = partial((access or Access()).check, "", "")
    states: list[Shown] = [{}]
    async for update in answers(
        tab,
        Visit(backend, "", Stop()),
        lambda values: to_request(backend, backend, "Why?", "", values, allow),
        [value for one in sides for value in one],
    ):
        states.append(states[-1] | {names[part]: value for part, value in update.items()})
    return states[1:]


async def test_the_panel_shows_both_and_ends_with_the_difference(backend: FakeBackend) -> None:
    updates = await run(backend, side(), side(seed="3"))
    assert updates[0]["difference"] == ""
    assert "The answers are the same" in updates[-1]["difference"]
    assert (updates[-2]["answer A"], updates[-2]["answer B"]) == ("Hello world!", "Hello world!")
    assert sorted(request.sampling.seed or 0 for request in backend.requests) == [0, 3]


async def test_thinking_and_math_are_shown(backend: FakeBackend) -> None:
    backend.script = [
        ReasoningDelta("Is $x$ 1?", 4),
        TextDelta("$x$ is $5", 8),
        Finish("stop", Usage(1, 8, 4), Timings(0.1, 1)),
    ]
    last = (await run(backend, side(), side()))[-1]
    thoughts, thinking, answer, costs = (last[f"{name} A"] for name in ("thoughts", "thinking", "answer", "costs"))
    assert isinstance(thoughts, gr.Accordion)
    assert thoughts.label == "Thinking · 4 tokens"
    assert (thinking, answer) == ("Is \\(x\\) 1?", "\\(x\\) is $5")
    assert "<td>8</td>" in costs


async def test_a_value_out_of_range_is_shown_only_on_its_side(backend: FakeBackend) -> None:
    last = (await run(backend, side(temperature=9), side()))[-2]
    assert "Temperature must be between 0 and 2" in last["costs A"]
    assert last["answer B"] == "Hello world!"
    assert len(backend.requests) == 1


async def test_strangers_compare_only_the_loaded_model(backend: FakeBackend) -> None:
    last = (await run(backend, side(model="two"), side(), access=Access(public=True, token="sesame")))[-2]
    assert "not the admin token" in last["costs A"]
    assert [request.model for request in backend.requests] == [None]


async def test_another_model_waits_for_the_first_answer(backend: FakeBackend) -> None:
    backend.delay = 0.1
    updates = await run(backend, side(), side(model="two"))
    assert all(update["answer A"] == "Hello world!" for update in updates[1:-1] if update["answer B"])
    assert [request.model for request in backend.requests] == [None, LoadOptions("two")]


TURNS = replace(READY, setup=replace(SETUP, engine=EngineSetup(Chosen(DYNAMIC, "a test"))))


@pytest.mark.parametrize("state", [READY, TURNS])
async def test_an_engine_that_takes_turns_answers_one_after_the_other(backend: FakeBackend, state: ModelStatus) -> None:
    backend.delay, backend.state = 0.1, state
    updates = await run(backend, side(), side())
    early = [update for update in updates[1:-1] if update["answer B"] and update["answer A"] != "Hello world!"]
    assert bool(early) == (state is READY)
    assert ("Answered after A" in updates[0]["costs B"]) == (state is TURNS)
    assert "Waiting" in updates[0]["costs A"]


async def test_the_server_beside_is_asked_at_the_same_time_and_by_everybody() -> None:
    here, there = FakeBackend(["here"] * 4, 0.1), FakeBackend(["there"] * 4, 0.1)
    here.state, there.state = TURNS, replace(READY, title="granite-4.1-8b")
    both = SideBySideBackend(here, there)
    _, models, *_ = shown_values(both, both.status())
    assert ("granite-4.1-8b (the other server)", BESIDE) in models.choices
    updates = await run(both, side(), side(model=BESIDE), access=Access(public=True, token="sesame"))
    assert (updates[-1]["answer A"], updates[-1]["answer B"]) == ("here" * 4, "there" * 4)
    assert [request.model for request in (*here.requests, *there.requests)] == [None, None]
    assert any(update["answer B"] and update["answer A"] != "here" * 4 for update in updates[1:-1])
    last = (await run(both, side(), side(model=BESIDE, precision="float32")))[-1]
    assert "chooses the precision itself" in last["costs B"]


def test_without_a_server_beside_none_can_be_asked(backend: FakeBackend) -> None:
    with pytest.raises(InvalidRequestError, match="Only the models in the list"):
        ask(backend, model=BESIDE)


def shot(text: str, tokens: int, seconds: float, thinking: int = 0) -> Snapshot:
    answer = Answer()
    thoughts = [ReasoningDelta("Hmm", thinking)] if thinking else []
    finish = Finish("stop", Usage(5, tokens, thinking), Timings(0.25, seconds))
    answer.add([*thoughts, TextDelta(text, tokens), finish], 0.5)
    return Snapshot(answer, "finished", "note", seconds)


def test_the_difference_in_words() -> None:
    assert difference_words(shot("x", 1000, 2.0), shot("y", 3100, 4.0, thinking=2000)) == (
        "B used 3.1 times the tokens of A (3,100 against 1,000). "
        "B took 2.0 times the time of A (4.00 s against 2.00 s). "
        "Thinking took 0 tokens in A and 2,000 in B. The answers differ."
    )


def test_about_equal_costs_are_shown_as_such() -> None:
    assert difference_words(shot("x ", 100, 2.0), shot("x", 103, 2.05)) == (
        "A used 100 and B 103 tokens. A took 2.00 s and B 2.05 s. The answers are the same, letter by letter."
    )


def test_nothing_divides_by_nothing() -> None:
    assert difference_words(shot("", 0, 0.0), shot("x", 5, 1.0)).startswith("A used 0 and B 5 tokens. A took 0.00 s")


def test_an_answer_without_an_end_is_not_compared() -> None:
    unfinished = Snapshot(Answer(text="x", tokens=3), "stopped", "note", 1.0)
    assert difference_words(unfinished, shot("x", 3, 1.0)) == ""
    assert difference_words(shot("x", 3, 1.0), unfinished) == ""
    unfinished.answer.finish = Finish("stopped", Usage(1, 3), Timings(0.1, 1.0))
    assert difference_words(unfinished, shot("x", 3, 1.0)) == ""


def test_the_costs_of_an_answer() -> None:
    html = costs_html(shot("x", 1001, 2.25, thinking=1000))
    assert re.findall("<td>(.*?)</td>", html) == ["1,001", "1,000", "0.25 s", "500.0", "2.25 s"]
    assert "thinking" not in costs_html(shot("x", 3, 1.0))


def test_the_costs_escape_an_error() -> None:
    html = costs_html(Snapshot(Answer(), "<img>", "error", 1.0))
    assert '<div class="error">&lt;img&gt;</div>' in html
