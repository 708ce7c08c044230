"""Completions through OpenAI's own client, over a scripted backend on a real port."""

from typing import Any

import openai
import pytest

from granite_demo.types.events import Finish, Queued, ScoreSummary, TextDelta, Timings, TokenScored, Usage
from granite_demo.types.logprobs import ScoredToken, TokenAlternative
from tests.fakes import FakeBackend

SCORES: list[Queued | ScoredToken | ScoreSummary] = [
    ScoredToken(1, "On"),
    ScoredToken(2, "ce", -0.5, alternatives=(TokenAlternative(3, "ly", -0.25),)),
    ScoreSummary(2, -0.5, 0.1),
]


def test_a_whole_and_a_streamed_completion(client: openai.OpenAI, fake: FakeBackend) -> None:
    whole = client.completions.create(model="fake", prompt="Once", max_tokens=2)
    assert whole.object == "text_completion"
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("Hello world", "length")
    options: Any = {"include_usage": True}
    *chunks, last = client.completions.create(
        model="fake", prompt="Once", max_tokens=2, stream=True, stream_options=options
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello world"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.usage == whole.usage
    assert fake.requests[0].prompt == "Once"
    assert fake.requests[0].special_tokens


def test_the_default_length_is_openais(client: openai.OpenAI, fake: FakeBackend) -> None:
    client.completions.create(model="fake", prompt="Once")
    assert fake.requests[0].sampling.max_tokens == 16


def test_prompts_of_every_kind(client: openai.OpenAI, fake: FakeBackend) -> None:
    client.completions.create(model="fake", prompt=["Once"], extra_body={"special_tokens": False})
    client.completions.create(model="fake", prompt=[5, 6])
    client.completions.create(model="fake", prompt="", suffix="end")
    texts, ids, gap = fake.requests
    assert (texts.prompt, texts.special_tokens) == ("Once", False)
    assert ids.prompt_ids == (5, 6)
    assert (gap.prompt, gap.suffix) == ("", "end")


def test_log_probabilities(client: openai.OpenAI, fake: FakeBackend) -> None:
    token = ScoredToken(7, " upon", -1.0, alternatives=(TokenAlternative(8, " in", -0.5),))
    fake.script = [TokenScored(token), TextDelta(" upon", 1), Finish("stop", Usage(2, 1), Timings(0.1, 0.2))]
    found = client.completions.create(model="fake", prompt="Once", logprobs=1).choices[0].logprobs
    assert found is not None
    assert (found.tokens, found.token_logprobs, found.text_offset) == ([" upon"], [-1.0], [0])
    assert found.top_logprobs == [{" in": -0.5, " upon": -1.0}]
    assert fake.requests[0].sampling.logprobs == 1


@pytest.mark.parametrize("prompt", ["Once", [1, 2]])
def test_an_echo_with_log_probabilities(client: openai.OpenAI, fake: FakeBackend, prompt: Any) -> None:
    fake.scores = list(SCORES)
    token = ScoredToken(7, " upon", -1.0)
    fake.script = [TokenScored(token), TextDelta(" upon", 1), Finish("stop", Usage(2, 1), Timings(0.1, 0.2))]
    choice = client.completions.create(model="fake", prompt=prompt, echo=True, logprobs=1).choices[0]
    assert choice.text == "Once upon"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["On", "ce", " upon"]
    assert choice.logprobs.token_logprobs == [None, -0.5, -1.0]
    assert choice.logprobs.text_offset == [0, 2, 4]
    assert fake.scored[0].alternatives == 1
    pieces: Any = client.completions.create(model="fake", prompt=prompt, echo=True, logprobs=1, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == "Once upon"


def test_an_echo_alone(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.scores = list(SCORES)
    answer = client.completions.create(model="fake", prompt="Once", echo=True, logprobs=0, max_tokens=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Once", "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 0)
    assert not fake.requests
    *_, last = client.completions.create(model="fake", prompt="Once", echo=True, max_tokens=0, stream=True)
    assert (last.choices[0].text, last.choices[0].finish_reason) == ("Once", "length")


def test_a_plain_echo_needs_no_scoring(client: openai.OpenAI, fake: FakeBackend) -> None:
    assert client.completions.create(model="fake", prompt="Once ", echo=True).choices[0].text == "Once Hello world!"
    assert not fake.scored
