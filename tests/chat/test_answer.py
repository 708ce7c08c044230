"""Tests for the state and the note of an answer."""

import pytest

from granite_demo.chat.answer import Answer
from granite_demo.types.events import (
    Appendix,
    Citation,
    Dropped,
    Finish,
    FinishReason,
    Queued,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
    Timings,
    TokenScored,
    ToolCalled,
    Usage,
)
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.messages import ToolCall


def finish(reason: FinishReason = "stop", tokens: int = 11, seed: int | None = None) -> Finish:
    return Finish(reason, Usage(5, tokens), Timings(ttft=0.5, total=2.5), seed)


def test_the_note_counts_the_seconds_of_waiting() -> None:
    answer = Answer()
    assert answer.note(0.9) == "Waiting for the first token"
    answer.add([], 7.4)
    assert answer.note(7.4) == "Waiting for the first token · 7 s"


@pytest.mark.parametrize(
    ("ahead", "words"),
    [(0, "Waiting: next in line"), (1, "Waiting: 1 request ahead"), (1200, "Waiting: 1,200 requests ahead")],
)
def test_the_note_shows_the_requests_ahead(ahead: int, words: str) -> None:
    answer = Answer()
    answer.add([Queued(5), Queued(ahead)], 0.2)
    assert (answer.note(0.2), answer.note(7.4)) == (words, f"{words} · 7 s")
    assert answer.stopped_note(0.2) == "stopped"
    answer.add([TextDelta("Hel", 1)], 3.0)
    assert answer.note(3.0) == "1 token · 3.00 s to first token"


def test_the_note_of_a_running_answer() -> None:
    answer = Answer()
    answer.add([TextDelta("Hel", 1)], 0.5)
    assert (answer.text, answer.note(0.5)) == ("Hel", "1 token · 0.50 s to first token")
    answer.add([TextDelta("lo", 2)], 0.6)
    assert answer.note(0.6) == "2 tokens · 0.50 s to first token", "too early for a speed"
    answer.add([TextDelta("", 3), TextDelta(" world", 1001)], 1.5)
    assert (answer.text, answer.note(1.5)) == ("Hello world", "1,001 tokens · 0.50 s to first token · 1000.0 tokens/s")


@pytest.mark.parametrize(
    ("last", "end"),
    [
        (finish("stop"), " · 5.0 tokens/s · finished (stop)"),
        (finish("length"), " · 5.0 tokens/s · cut at the token limit (length)"),
        (finish("stop", seed=0), " · 5.0 tokens/s · finished (stop) · seed 0"),
    ],
    ids=["stop", "length", "seed"],
)
def test_the_note_of_a_finished_answer_has_the_backends_figures(last: Finish, end: str) -> None:
    answer = Answer()
    answer.add([TextDelta("Hello", 10), last], 9.0)
    assert answer.note(99.0) == "11 tokens · 0.50 s to first token" + end


def test_an_answer_of_one_token_has_no_speed() -> None:
    answer = Answer()
    answer.add([finish("stop", tokens=1)], 9.0)
    assert answer.note(9.0) == "1 token · 0.50 s to first token · finished (stop)"


def test_the_note_of_a_stopped_answer() -> None:
    answer = Answer()
    assert answer.stopped_note(7.0) == "stopped"
    answer.add([TextDelta("Hel", 1), TextDelta("lo", 2)], 0.5)
    assert answer.stopped_note(0.6) == "2 tokens · 0.50 s to first token · stopped"
    answer.add([finish()], 0.7)
    assert answer.stopped_note(0.7) == answer.note(0.7), "it ended before it was stopped"


def test_thinking_is_counted_and_timed_live() -> None:
    answer = Answer()
    answer.add([ReasoningDelta("Hm", 1)], 0.5)
    answer.add([ReasoningDelta(", so", 3)], 1.5)
    assert (answer.thinking, answer.text, answer.thinking_tokens) == ("Hm, so", "", 3)
    assert (answer.ttft, answer.thinking_end, answer.thinking_seconds(2.5)) == (0.5, None, 2.0)
    answer.add([TextDelta("Yes", 5)], 3.0)
    assert (answer.thinking_tokens, answer.thinking_seconds(9.0)) == (3, 2.5)


def test_the_finish_has_the_figures_for_the_thinking() -> None:
    answer = Answer()
    answer.add([ReasoningDelta("Hm", 1)], 0.5)
    answer.add([Finish("length", Usage(5, 9, 8), Timings(0.1, 2.0, 1.25))], 4.0)
    assert (answer.thinking_tokens, answer.thinking_seconds(9.0), answer.thinking_end) == (8, 1.25, 4.0)


def test_an_answer_without_thinking_has_no_thinking_time() -> None:
    answer = Answer()
    answer.add([TextDelta("Yes", 1)], 1.0)
    assert (answer.thinking_seconds(5.0), answer.thinking_end) == (0.0, None)


def test_calls_citations_and_appendices_are_kept_in_order() -> None:
    answer = Answer()
    events: list[StreamEvent] = [
        ToolCalled(ToolCall("a", "{}")),
        Citation("1", 0, 3),
        Appendix("citations", "x"),
        Citation("2", 4, 4),
    ]
    answer.add([*events, ToolCalled(ToolCall("b", "{", "broken"))], 1.0)
    assert [call.name for call in answer.calls] == ["a", "b"]
    assert answer.citations == [Citation("1", 0, 3), Citation("2", 4, 4)]
    assert answer.appendices == [Appendix("citations", "x")]


@pytest.mark.parametrize(("messages", "words"), [(1, "the oldest 1 message"), (12, "the oldest 12 messages")])
def test_the_note_shows_dropped_messages(messages: int, words: str) -> None:
    answer = Answer()
    answer.add([Dropped(messages), TextDelta("Yes", 1)], 1.0)
    assert answer.note(1.0).endswith(f" · left out to fit the context: {words}")


def test_each_scored_token_has_the_length_of_the_text_after_it() -> None:
    answer = Answer()
    first, half, rest, end = (ScoredToken(number, "?") for number in range(4))
    answer.add([TokenScored(first), TextDelta("a", 1), TokenScored(half), TextDelta("", 2)], 1.0)
    before = answer.scored
    answer.add([TokenScored(rest), TextDelta("é", 3), TextDelta("!", 3), TokenScored(end)], 1.5)
    assert answer.scored == [first, half, rest, end]
    assert answer.ends == [1, 1, 3]
    assert before == [first, half], "the earlier list is not changed"


def test_without_scored_tokens_no_ends_are_kept() -> None:
    answer = Answer()
    answer.add([TextDelta("a", 1), TextDelta("b", 2)], 1.0)
    assert answer.ends == []


def test_the_note_says_what_to_raise_if_thinking_used_all_tokens() -> None:
    answer = Answer()
    answer.add([ReasoningDelta("Hm", 11), finish("length")], 2.0)
    assert "raise Max new tokens" in answer.note(2.5)
    answer.add([TextDelta("So", 12)], 2.5)
    assert "raise" not in answer.note(2.5)
