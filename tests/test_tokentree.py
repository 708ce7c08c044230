"""The tree of continuations, without a page."""

from collections.abc import Sequence
from dataclasses import replace
from math import log

import pytest

from granite_demo import tokentree
from granite_demo.errors import InvalidRequestError
from granite_demo.scores import ScoredToken, TokenAlternative
from granite_demo.tokentree import MAX_RUNS, Fork, Run, Tree


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
    found, new = tokentree.branched(tree, position, number_of(word), is_control)
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
    return tokentree.added(Tree("Say "), [run(["a", " b", " c", " d"])])


def test_an_empty_tree_adds_nothing() -> None:
    assert (tokentree.text(Tree("Say ")), tokentree.tokens(Tree("Say "))) == ("", ())
    assert tokentree.prefix(Tree("Say ")) == ("Say ", ())
    assert tokentree.forks(Tree("Say ")) == []


def test_a_continuation_follows_the_ids_of_the_one_before(tree: Tree) -> None:
    assert tokentree.text(tree) == "a b c d"
    assert tokentree.prefix(tree) == ("Say ", ids("a", " b", " c", " d"))
    longer = tokentree.added(tree, [replace(tokentree.next_run(tree), text=" e", tokens=(token(" e"),), ends=(2,))])
    assert tokentree.text(longer) == "a b c d e"
    assert tokentree.prefix(longer)[1] == ids("a", " b", " c", " d", " e")
    assert tokentree.forks(longer) == [], "one way on is no fork"


def test_an_alternative_begins_a_branch(tree: Tree) -> None:
    found = branch(tree, 2, "X")
    assert tokentree.text(found) == "a bX"
    assert tokentree.prefix(found) == ("Say ", ids("a", " b", "X"))
    chosen = tokentree.tokens(found)[-1]
    assert (chosen.text, chosen.logprob, len(chosen.alternatives)) == ("X", log(0.25), 3)
    assert tokentree.text(grown(found, " y", " z")) == "a bX y z"
    assert tokentree.forks(found) == [Fork(0, 2, (0, 1), 1)]


def test_branches_can_be_walked_back_and_forth(tree: Tree) -> None:
    found = grown(branch(tree, 2, "X"), " y")
    back = tokentree.shown(found, 0)
    assert tokentree.text(back) == "a b c d"
    assert tokentree.forks(back) == [Fork(0, 2, (0, 1), 0)]
    assert tokentree.text(tokentree.shown(back, 1)) == "a bX y"


def test_a_branch_of_a_branch_and_of_its_first_token(tree: Tree) -> None:
    found = grown(branch(tree, 1, "X"), " y", " z")
    deeper = branch(found, 2, "<|end|>")
    assert tokentree.text(deeper) == "aX"
    again, new = tokentree.branched(deeper, 1, number_of(" b"), is_control)
    assert not new
    assert again.head == 0, "back to the first one"
    beside = branch(tree, 0, "X")
    assert (beside.runs[1].parent, beside.runs[1].at) == (None, 0)
    assert tokentree.forks(beside) == [Fork(None, 0, (0, 1), 1)]
    assert tokentree.text(tokentree.branched(beside, 0, number_of("a"), is_control)[0]) == "a b c d"


def test_forks_stand_in_the_order_of_the_text(tree: Tree) -> None:
    found = tokentree.shown(branch(tree, 3, "X"), 0)
    found = tokentree.shown(branch(found, 1, "X"), 0)
    assert tokentree.forks(found) == [Fork(0, 1, (0, 2), 0), Fork(0, 3, (0, 1), 0)]
    assert tokentree.forks(tokentree.shown(found, 2)) == [Fork(0, 1, (0, 2), 2)]


def test_the_same_alternative_is_not_branched_twice(tree: Tree) -> None:
    found = tokentree.shown(grown(branch(tree, 2, "X"), " y"), 0)
    again, new = tokentree.branched(found, 2, number_of("X"), is_control)
    assert (new, len(again.runs), tokentree.text(again)) == (False, 2, "a bX y")
    same, new = tokentree.branched(found, 2, number_of(" c"), is_control)
    assert (new, tokentree.text(same)) == (False, "a b c d")


def test_an_end_token_is_none_of_the_text(tree: Tree) -> None:
    found = branch(tree, 1, "<|end|>")
    assert tokentree.text(found) == "a"
    assert found.runs[1].ended
    assert tokentree.prefix(found) == ("Say a", ()), "what follows does not know of the end"


def test_tokens_that_are_not_known_are_text(tree: Tree) -> None:
    assert tokentree.prefix(tokentree.added(Tree("Say "), [Run(text="hello")])) == ("Say hello", ())
    first = tokentree.added(Tree("Say "), [Run(text="hello")])
    second = tokentree.added(first, [replace(run(["a", " b"]), parent=0, at=0)])
    assert tokentree.text(second) == "helloa b"
    assert tokentree.prefix(second) == ("Say hello", ids("a", " b"))
    assert tokentree.prefix(branch(second, 1, "X")) == ("Say hello", ids("a", "X"))
    assert [fork.choices for fork in tokentree.forks(branch(second, 1, "X"))] == [(1, 2)]
    assert tokentree.text(tokentree.shown(second, 0)) == "helloa b", "to the end of what was continued"


def test_half_a_character_is_left_out_of_a_branch() -> None:
    parts = Run(tokens=(token("a"), token("�", "X"), token("�", "X")), text="aé", ends=(1, 1, 2))
    found = branch(tokentree.added(Tree("Say "), [parts]), 2, "X")
    assert tokentree.text(found) == "aX"
    assert tokentree.prefix(found)[1] == ids("a", "�", "X")


def test_samples_stand_beside_one_another(tree: Tree) -> None:
    following = tokentree.next_run(tree)
    found = tokentree.added(tree, [replace(run([" e"]), parent=following.parent, at=following.at) for _ in "ab"])
    assert tokentree.forks(found) == [Fork(0, 4, (1, 2), 1)]


def test_what_is_not_there_is_refused(tree: Tree) -> None:
    for position, word in ((4, "X"), (1, "nothing")):
        with pytest.raises(InvalidRequestError, match="Reload the page"):
            tokentree.branched(tree, position, number_of(word), is_control)
    for index in (-1, 1):
        with pytest.raises(InvalidRequestError, match="no such branch"):
            tokentree.shown(tree, index)
    full = tokentree.added(tree, [Run(text="x")] * (MAX_RUNS - 1))
    with pytest.raises(InvalidRequestError, match=f"{MAX_RUNS} branches"):
        tokentree.added(full, [Run()])
