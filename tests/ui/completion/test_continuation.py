"""From a text to the request that continues it, and from answers to runs, without a page."""

from dataclasses import replace

import pytest

from granite_demo.chat.answer import Answer
from granite_demo.errors import EngineError, InvalidRequestError
from granite_demo.types.constraints import Constraint
from granite_demo.types.events import Finish, FinishReason, TextDelta, Timings, TokenScored, Usage
from granite_demo.types.logprobs import ScoredToken, TokenAlternative
from granite_demo.types.prompt_view import PromptPart, PromptView
from granite_demo.types.sampling_params import MAX_SEED, SamplingParams
from granite_demo.types.stop import Stop
from granite_demo.ui.completion import token_tree
from granite_demo.ui.completion.continuation import (
    continued,
    end_of_branch,
    extended,
    grown,
    request_for,
    sampled,
    seeded,
    start,
    to_continuation,
)
from granite_demo.ui.completion.token_tree import Run, Tree
from granite_demo.ui.settings import DEFAULTS
from tests.fakes import FakeBackend

VIEW = PromptView((PromptPart("user", "Say ", ((5, "Say"), (6, " "))),), 2, 0, 100)
GREEDY = SamplingParams()
TWO = token_tree.added(Tree("Say "), [Run(tokens=(ScoredToken(7, "a"), ScoredToken(8, "b")), text="ab", ends=(1, 2))])


def answer(*words: str, reason: FinishReason | None = "length") -> Answer:
    found = Answer()
    for count, word in enumerate(words, 1):
        found.add([TokenScored(ScoredToken(count, word)), TextDelta(word, count)], 1.0)
    if reason:
        found.add([Finish(reason, Usage(1, len(words)), Timings(0.1, 0.2))], 1.0)
    return found


def test_each_sample_has_its_own_seed() -> None:
    warm = SamplingParams(temperature=1, seed=MAX_SEED)
    assert [each.seed for each in seeded(warm, 3)] == [MAX_SEED, 0, 1]
    drawn = [each.seed for each in seeded(SamplingParams(temperature=1), 4)]
    assert None not in drawn
    assert len(set(drawn)) == 4
    assert seeded(GREEDY, 1) == [GREEDY]
    with pytest.raises(InvalidRequestError, match="At temperature 0 all samples are the same"):
        seeded(GREEDY, 2)
    for count in (0, 5):
        with pytest.raises(InvalidRequestError, match="At most 4"):
            seeded(warm, count)


def test_a_changed_text_begins_a_new_tree() -> None:
    assert start(TWO, "Say ", special=False) is TWO
    assert start(TWO, "Say", special=False) == Tree("Say")
    assert start(TWO, "Say ", special=True) == Tree("Say ", True)


async def test_the_request_goes_by_ids_where_they_are_known() -> None:
    backend = FakeBackend()
    backend.view = VIEW
    special = replace(TWO, special=True)
    request = await request_for(backend, special, GREEDY)
    assert (request.prompt, request.prompt_ids) == (None, (5, 6, 7, 8))
    assert backend.inspected[-1].prompt == "Say "
    assert backend.inspected[-1].special_tokens
    first = await request_for(backend, Tree("Say ", True), GREEDY)
    assert (first.prompt, first.special_tokens, len(backend.inspected)) == ("Say ", True, 1)


async def test_the_request_goes_by_text_where_another_server_has_the_ids() -> None:
    request = await request_for(FakeBackend(), TWO, GREEDY)
    assert (request.prompt, request.prompt_ids) == ("Say ab", None)


async def test_a_constraint_holds_for_all_that_is_not_accepted() -> None:
    backend = FakeBackend()
    backend.view = VIEW
    bound = SamplingParams(constraint=Constraint("json_object"))
    assert (await request_for(backend, Tree("Say "), bound)).begun == ("", ())
    assert (await request_for(backend, TWO, bound)).begun == ("", (7, 8))
    assert (await request_for(backend, TWO, GREEDY)).begun == ("", ())
    # After an end that the reader did not see only the text is exact.
    ended = token_tree.added(
        replace(TWO, runs=(replace(TWO.runs[0], ended=True),)), [Run(0, 2, (ScoredToken(9, "c"),))]
    )
    assert (await request_for(backend, ended, bound)).begun == ("ab", (9,))
    assert (await request_for(FakeBackend(), TWO, bound)).begun == ("ab", ())


async def test_errors_before_the_stream_are_notes() -> None:
    backend = FakeBackend()
    backend.view_error = EngineError("No model.")
    states = [latest async for latest in continued(backend, TWO, [GREEDY], Stop())]
    shot = states[-1][0]
    assert shot is not None
    assert (shot.kind, shot.note) == ("error", "No model.")


def test_an_answer_makes_a_run() -> None:
    run = extended(Run(0, 1, (ScoredToken(9, "X"),), "X", (1,)), answer("ab", "c"))
    assert (run.parent, run.at, run.text, run.ends, run.ended) == (0, 1, "Xabc", (1, 3, 4), False)
    assert [token.text for token in run.tokens] == ["X", "ab", "c"]
    assert extended(Run(), answer("a", reason="stop")).ended
    assert not extended(Run(), answer("a", reason=None)).ended, "it was stopped by its reader"


def test_answers_grow_the_tree() -> None:
    assert token_tree.text(grown(TWO, None, answer("c", "d"))) == "abcd"
    assert grown(TWO, None, Answer()) == TWO
    branch, _ = grown(TWO, 0, answer("c")), None
    assert (len(branch.runs), token_tree.text(branch)) == (1, "abc")


def test_samples_are_shown_each_by_its_own_tree() -> None:
    trees = sampled(TWO, [answer("c"), None, Answer(), answer("d")])
    assert [tree and token_tree.text(tree) for tree in trees] == ["abc", None, None, "abd"]
    assert token_tree.forks(trees[3])[0].choices == (1, 2)  # type: ignore[arg-type]


def test_a_branch_is_constrained_as_a_continuation_is() -> None:
    token = ScoredToken(7, "{", alternatives=(TokenAlternative(9, "{}", -1.0),))
    tree = token_tree.added(Tree("JSON: "), [Run(tokens=(token,), text="{", ends=(1,))])
    target = end_of_branch(tree, 0, 9)
    continuation = to_continuation(FakeBackend(), target, True, "probability", "json_object", "", "", "", *DEFAULTS)
    assert target.run == 1
    assert continuation.constraint == continuation.samplings[0].constraint == Constraint("json_object")
