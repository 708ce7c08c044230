"""The tree of continuations, without a page."""

from collections.abc import Sequence
from dataclasses import replace
from math import log

import pytest

from granite_demo.errors import InvalidRequestError
from granite_demo.types.logprobs import ScoredToken, TokenAlternative
from granite_demo.ui.completion import token_tree
from granite_demo.ui.completion.token_tree import MAX_RUNS, Fork, Run, Tree


def token(word: str, *others: str) -> ScoredToken:
    alternatives = tuple(TokenAlternative(number_of(other), other, log(0.25)) for other in (word, *others))
    return ScoredToken(number_of(word), word, log(0.5), None, 1.0, alternatives)


def number_of(word: str) -> int:
    return int.from_bytes(word.encode(), "big") % 9973


def run(words: Sequence[str], others: Sequence[str] = ("X", "<|end|>"), **fields: object) -> Run:
    text = "".join(words)
    ends = tuple(len("".join(words[: count + 1])) for count in range(len(words)))
    return replace(Run(tokens=tuple(token(word, *others) for word in words), text=text, ends=ends), **fields)  # type: ignore[arg-type]


def ids(*words: str) -> tuple[int, ...]:
    return tuple(map(number_of, words))


def is_control(text: str) -> bool:
    return text.startswith("<|")


def branch(tree: Tree, position: int, word: str) -> Tree:
    found, new = token_tree.branched(tree, position, number_of(word), is_control)
    assert new
    return found


def grown(tree: Tree, *words: str) -> Tree:
    """The branch that was just begun, with more tokens."""
    assert tree.head is not None
    begun, more = tree.runs[tree.head], run(words)
    ends = (*begun.ends, *(len(begun.text) + end for end in more.ends))
    longer = replace(begun, tokens=begun.tokens + more.tokens, text=begun.text + more.text, ends=ends)
    return replace(tree, runs=(*tree.runs[: tree.head], longer, *tree.runs[tree.head + 1 :]))


@pytest.fixture
def tree() -> Tree:
    return token_tree.added(Tree("Say "), [run(["a", " b", " c", " d"])])


def test_an_empty_tree_adds_nothing() -> None:
    assert (token_tree.text(Tree("Say ")), token_tree.tokens(Tree("Say "))) == ("", ())
    assert token_tree.prefix(Tree("Say ")) == ("Say ", ())
    assert token_tree.forks(Tree("Say ")) == []


def test_a_continuation_follows_the_ids_of_the_one_before(tree: Tree) -> None:
    assert token_tree.text(tree) == "a b c d"
    assert token_tree.prefix(tree) == ("Say ", ids("a", " b", " c", " d"))
    longer = token_tree.added(tree, [replace(token_tree.next_run(tree), text=" e", tokens=(token(" e"),), ends=(2,))])
    assert token_tree.text(longer) == "a b c d e"
    assert token_tree.prefix(longer)[1] == ids("a", " b", " c", " d", " e")
    assert token_tree.forks(longer) == [], "one way on is no fork"


def test_an_alternative_begins_a_branch(tree: Tree) -> None:
    found = branch(tree, 2, "X")
    assert token_tree.text(found) == "a bX"
    assert token_tree.prefix(found) == ("Say ", ids("a", " b", "X"))
    chosen = token_tree.tokens(found)[-1]
    assert (chosen.text, chosen.logprob, len(chosen.alternatives)) == ("X", log(0.25), 3)
    assert token_tree.text(grown(found, " y", " z")) == "a bX y z"
    assert token_tree.forks(found) == [Fork(0, 2, (0, 1), 1)]


def test_branches_can_be_walked_back_and_forth(tree: Tree) -> None:
    found = grown(branch(tree, 2, "X"), " y")
    back = token_tree.shown(found, 0)
    assert token_tree.text(back) == "a b c d"
    assert token_tree.forks(back) == [Fork(0, 2, (0, 1), 0)]
    assert token_tree.text(token_tree.shown(back, 1)) == "a bX y"


def test_a_branch_of_a_branch_and_of_its_first_token(tree: Tree) -> None:
    found = grown(branch(tree, 1, "X"), " y", " z")
    deeper = branch(found, 2, "<|end|>")
    assert token_tree.text(deeper) == "aX"
    again, new = token_tree.branched(deeper, 1, number_of(" b"), is_control)
    assert not new
    assert again.head == 0, "back to the first one"
    beside = branch(tree, 0, "X")
    assert (beside.runs[1].parent, beside.runs[1].at) == (None, 0)
    assert token_tree.forks(beside) == [Fork(None, 0, (0, 1), 1)]
    assert token_tree.text(token_tree.branched(beside, 0, number_of("a"), is_control)[0]) == "a b c d"


def test_forks_stand_in_the_order_of_the_text(tree: Tree) -> None:
    found = token_tree.shown(branch(tree, 3, "X"), 0)
    found = token_tree.shown(branch(found, 1, "X"), 0)
    assert token_tree.forks(found) == [Fork(0, 1, (0, 2), 0), Fork(0, 3, (0, 1), 0)]
    assert token_tree.forks(token_tree.shown(found, 2)) == [Fork(0, 1, (0, 2), 2)]


def test_the_same_alternative_is_not_branched_twice(tree: Tree) -> None:
    found = token_tree.shown(grown(branch(tree, 2, "X"), " y"), 0)
    again, new = token_tree.branched(found, 2, number_of("X"), is_control)
    assert (new, len(again.runs), token_tree.text(again)) == (False, 2, "a bX y")
    same, new = token_tree.branched(found, 2, number_of(" c"), is_control)
    assert (new, token_tree.text(same)) == (False, "a b c d")


def test_an_end_token_is_none_of_the_text(tree: Tree) -> None:
    found = branch(tree, 1, "<|end|>")
    assert token_tree.text(found) == "a"
    assert found.runs[1].ended
    assert token_tree.prefix(found) == ("Say a", ()), "what follows does not know of the end"


def test_tokens_that_are_not_known_are_text(tree: Tree) -> None:
    assert token_tree.prefix(token_tree.added(Tree("Say "), [Run(text="hello")])) == ("Say hello", ())
    first = token_tree.added(Tree("Say "), [Run(text="hello")])
    second = token_tree.added(first, [replace(run(["a", " b"]), parent=0, at=0)])
    assert token_tree.text(second) == "helloa b"
    assert token_tree.prefix(second) == ("Say hello", ids("a", " b"))
    assert token_tree.prefix(branch(second, 1, "X")) == ("Say hello", ids("a", "X"))
    assert [fork.choices for fork in token_tree.forks(branch(second, 1, "X"))] == [(1, 2)]
    assert token_tree.text(token_tree.shown(second, 0)) == "helloa b", "to the end of what was continued"


def test_half_a_character_is_left_out_of_a_branch() -> None:
    parts = Run(tokens=(token("a"), token("�", "X"), token("�", "X")), text="aé", ends=(1, 1, 2))
    found = branch(token_tree.added(Tree("Say "), [parts]), 2, "X")
    assert token_tree.text(found) == "aX"
    assert token_tree.prefix(found)[1] == ids("a", "�", "X")


def test_samples_stand_beside_one_another(tree: Tree) -> None:
    following = token_tree.next_run(tree)
    found = token_tree.added(tree, [replace(run([" e"]), parent=following.parent, at=following.at) for _ in "ab"])
    assert token_tree.forks(found) == [Fork(0, 4, (1, 2), 1)]


def test_what_is_not_there_is_refused(tree: Tree) -> None:
    for position, word in ((4, "X"), (1, "nothing")):
        with pytest.raises(InvalidRequestError, match="Reload the page"):
            token_tree.branched(tree, position, number_of(word), is_control)
    for index in (-1, 1):
        with pytest.raises(InvalidRequestError, match="no such branch"):
            token_tree.shown(tree, index)
    full = token_tree.added(tree, [Run(text="x")] * (MAX_RUNS - 1))
    with pytest.raises(InvalidRequestError, match=f"{MAX_RUNS} branches"):
        token_tree.added(full, [Run()])
