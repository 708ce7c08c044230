"""The continuations of one text as a tree of tokens, so that no branch is ever lost. Pure; knows no page and no model.

A ``Run`` is what was generated in one go. It follows ``at`` tokens of its parent: fewer than the parent has where it
is a branch, all of them where it continues. ``head`` names the run whose end is shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from granite_demo.errors import InvalidRequestError
from granite_demo.types.logprobs import ScoredToken

MAX_RUNS = 64


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens in a row and their text; ``tokens`` is empty where only the text is known."""

    parent: int | None = None
    at: int = 0
    tokens: tuple[ScoredToken, ...] = ()
    text: str = ""
    ends: tuple[int, ...] = ()
    """Characters of the text that are certain after each token."""
    ended: bool = False
    """By an end token or a stop string, which the text leaves out."""

    def text_of(self, count: int) -> str:
        """The text of the first ``count`` tokens, without half a character at its end."""
        if count >= len(self.tokens):
            return self.text
        known = self.ends[:count]
        return self.text[: known[-1]] if known else ""


@dataclass(frozen=True, slots=True)
class Tree:
    """All continuations of ``prompt`` that are not accepted; ``special``: it may spell control tokens."""

    prompt: str = ""
    special: bool = False
    runs: tuple[Run, ...] = ()
    head: int | None = None


@dataclass(frozen=True, slots=True)
class Fork:
    """A place on the shown branch where there are several ways on: ``choices`` are runs, ``chosen`` one of them."""

    parent: int | None
    at: int
    choices: tuple[int, ...]
    chosen: int


def path(tree: Tree) -> list[tuple[Run, int]]:
    """The runs of the shown branch, each with how many of its tokens belong to it."""
    return [(tree.runs[index], count) for index, count in _chain(tree)]


def _chain(tree: Tree) -> list[tuple[int, int]]:
    chain: list[tuple[int, int]] = []
    index, count = tree.head, None
    while index is not None:
        run = tree.runs[index]
        chain.append((index, len(run.tokens) if count is None else count))
        index, count = run.parent, run.at
    return chain[::-1]


def tokens(tree: Tree) -> tuple[ScoredToken, ...]:
    """The tokens of the shown branch, as far as they are known."""
    return tuple(token for run, count in path(tree) for token in run.tokens[:count])


def text(tree: Tree) -> str:
    """What the shown branch adds to the prompt."""
    return "".join(run.text_of(count) for run, count in path(tree))


def prefix(tree: Tree) -> tuple[str, tuple[int, ...]]:
    """What the next token follows: a text, and the ids of tokens after it.

    The text reaches to the last place where only that is exact: tokens that are not known, or an end that the reader
    did not see.
    """
    base = sofar = tree.prompt
    ids: list[int] = []
    for run, count in path(tree):
        sofar += run.text_of(count)
        if count == len(run.tokens) and (run.ended or not run.tokens):
            base, ids = sofar, []
        else:
            ids += [token.id for token in run.tokens[:count]]
    return base, tuple(ids)


def added(tree: Tree, runs: Sequence[Run]) -> Tree:
    """``tree`` with more runs, of which the first is shown.

    Raises InvalidRequestError where it is full.
    """
    if len(tree.runs) + len(runs) > MAX_RUNS:
        raise InvalidRequestError(f"There are {MAX_RUNS} branches. Accept one, or discard them.")
    return replace(tree, runs=(*tree.runs, *runs), head=len(tree.runs))


def next_run(tree: Tree) -> Run:
    """An empty run that continues the shown branch."""
    return Run(tree.head, len(tree.runs[tree.head].tokens) if tree.head is not None else 0)


def branched(tree: Tree, position: int, token_id: int, ends: Callable[[str], object]) -> tuple[Tree, bool]:
    """The tree with the alternative ``token_id`` at ``position`` of the shown branch, and whether that is new.

    ``ends`` is true for the text of a token that ends the branch and adds no text. Raises InvalidRequestError.
    """
    inside, at = _locate(tree, position)
    token = tree.runs[inside].tokens[at]
    # What could stand in place of a run's first token is a branch of its parent.
    place = (inside, at) if at else (tree.runs[inside].parent, tree.runs[inside].at)
    for index in _choices(tree, *place):
        if (first := first_token(tree, index, *place)) and first.id == token_id:
            return shown(tree, index), False
    other = next((other for other in token.alternatives if other.id == token_id), None)
    if other is None:
        raise InvalidRequestError("That is no alternative of this token. Reload the page.")
    chosen = replace(token, id=other.id, text=other.text, logprob=other.logprob, sampled=other.sampled)
    ended = bool(ends(other.text))
    words = "" if ended else other.text
    return added(tree, [Run(*place, (chosen,), words, (len(words),), ended)]), True


def _locate(tree: Tree, position: int) -> tuple[int, int]:
    for index, count in _chain(tree):
        if position < count:
            return index, position
        position -= count
    raise InvalidRequestError("That is no token of this text. Reload the page.")


def first_token(tree: Tree, index: int, parent: int | None, at: int) -> ScoredToken | None:
    """The token with which run ``index`` goes on after ``at`` tokens of ``parent``, if it is known."""
    run = tree.runs[index]
    place = at if index == parent else 0
    return run.tokens[place] if place < len(run.tokens) else None


def _choices(tree: Tree, parent: int | None, at: int) -> tuple[int, ...]:
    """The runs that go on in this place; the parent itself is the first, where it does."""
    itself = [parent] if parent is not None and at < len(tree.runs[parent].tokens) else []
    others = [index for index, run in enumerate(tree.runs) if (run.parent, run.at) == (parent, at)]
    return tuple(itself + others)


def forks(tree: Tree) -> list[Fork]:
    """The places of the shown branch with more than one way on, in its order."""
    chain = _chain(tree)
    found = []
    for (index, count), before in zip(chain, [(None, 0), *chain], strict=False):
        places = {run.at for run in tree.runs if run.parent == index and 0 < run.at < count}
        for parent, at in [before, *((index, at) for at in sorted(places))]:
            choices = _choices(tree, parent, at)
            if len(choices) > 1:
                found.append(Fork(parent, at, choices, index))
    return found


def shown(tree: Tree, index: int) -> Tree:
    """The branch of run ``index``, to the end of what was continued last. Raises InvalidRequestError."""
    if not 0 <= index < len(tree.runs):
        raise InvalidRequestError("There is no such branch. Reload the page.")
    while following := [number for number, run in enumerate(tree.runs) if _continues(tree, run, index)]:
        index = following[-1]
    return replace(tree, head=index)


def _continues(tree: Tree, run: Run, index: int) -> bool:
    return run.parent == index and run.at == len(tree.runs[index].tokens)
