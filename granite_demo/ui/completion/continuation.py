"""A text to the requests that continue it, and their answers to runs of its token tree. Knows no page."""

import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from granite_demo.backend import Backend
from granite_demo.chat.answer import Answer
from granite_demo.errors import InvalidRequestError
from granite_demo.types.constraints import Constraint
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import MAX_SEED, SamplingParams
from granite_demo.types.stop import Stop
from granite_demo.ui.completion import token_tree, token_view
from granite_demo.ui.completion.constraint import to_constraint
from granite_demo.ui.completion.token_tree import Run, Tree
from granite_demo.ui.completion.token_view import Tint
from granite_demo.ui.settings import to_sampling
from granite_demo.ui.streaming import Latest, Snapshot, side_by_side, snapshots

ALTERNATIVES = 10
MAX_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Target:
    """Where a continuation begins: at the end of the shown branch of ``tree``.

    With ``run``, the last run of the tree, the tokens go into that run; without it each sample is a new run.
    """

    tree: Tree
    run: int | None = None
    samples: int = 1
    """0: the branch is only shown."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What to continue, and how."""

    target: Target
    tint: Tint
    samplings: list[SamplingParams]
    """One for each sample."""
    constraint: Constraint | None


def end_of_text(tree: Tree, text: str | None, special: Any, samples: Any) -> Target:
    """The end of ``text``, or of what ``tree`` already adds to it. Raises InvalidRequestError."""
    if not text:
        raise InvalidRequestError("The prompt is empty. Write something to continue from.")
    if isinstance(samples, bool) or not isinstance(samples, int) or not 1 <= samples <= MAX_SAMPLES:
        raise InvalidRequestError(f"Choose 1 to {MAX_SAMPLES} samples.")
    return Target(start(tree, text, bool(special)), samples=samples)


def end_of_branch(tree: Tree, position: int, token_id: int) -> Target:
    """The branch with the alternative ``token_id`` at ``position``. Raises InvalidRequestError.

    A branch that exists, or that ends with this token, is only shown.
    """
    branch, new = token_tree.branched(tree, position, token_id, token_view.CONTROL.fullmatch)
    if not new or (branch.head is not None and branch.runs[branch.head].ended):
        return Target(branch, samples=0)
    return Target(branch, run=branch.head)


def to_continuation(
    backend: Backend,
    target: Target,
    show: Any,
    tint: Any,
    kind: Any,
    schema: Any,
    pattern: Any,
    choices: Any,
    *values: Any,
) -> Continuation:
    """``target`` with the visitor's options and settings. Raises InvalidRequestError."""
    tint = "entropy" if tint == "entropy" else "probability"
    if not target.samples:
        return Continuation(target, tint, [], None)
    constraint = to_constraint(kind, schema, pattern, choices)
    able = show and not backend.status().unable_to("log probabilities")
    sampling = replace(to_sampling(*values), logprobs=ALTERNATIVES if able else None, constraint=constraint)
    samplings = seeded(sampling, target.samples)
    # Raises where the tree has no room for the new runs.
    token_tree.added(
        target.tree, [token_tree.next_run(target.tree)] * (0 if target.run is not None else target.samples)
    )
    return Continuation(target, tint, samplings, constraint)


def seeded(sampling: SamplingParams, samples: int) -> list[SamplingParams]:
    """One for each sample: seeds in a row from the given one, or random ones. Raises InvalidRequestError."""
    if not 1 <= samples <= MAX_SAMPLES:
        raise InvalidRequestError(f"At most {MAX_SAMPLES} samples are possible.")
    if samples == 1:
        return [sampling]
    if sampling.temperature == 0:
        raise InvalidRequestError(
            "At temperature 0 all samples are the same. Raise it in Sampling, or ask for one sample."
        )
    first = sampling.seed
    seeds = [secrets.randbelow(2**31) if first is None else (first + n) % (MAX_SEED + 1) for n in range(samples)]
    return [replace(sampling, seed=seed) for seed in seeds]


def start(tree: Tree, text: str, special: bool) -> Tree:
    """``tree`` if it continues ``text``, else an empty tree for it."""
    return tree if (tree.prompt, tree.special) == (text, special) else Tree(text, special)


async def request_for(backend: Backend, tree: Tree, sampling: SamplingParams) -> GenerationRequest:
    """The request that continues the shown branch, with the ids of its tokens if they are known.

    Raises GraniteDemoError.
    """
    base, ids = token_tree.prefix(tree)
    # The constraint holds for all text that is not accepted.
    begun = (base[len(tree.prompt) :], ids) if sampling.constraint else ("", ())
    asked = GenerationRequest(prompt=base, special_tokens=tree.special, sampling=sampling, begun=begun)
    if not ids:
        return asked
    view = await backend.inspect(asked, parts=True)
    if view is None or not view.parts:
        text = token_tree.text(tree)
        return replace(asked, prompt=tree.prompt + text, begun=(text, ()) if sampling.constraint else begun)
    before = tuple(index for part in view.parts for index, _ in part.tokens)
    return GenerationRequest(prompt_ids=before + ids, sampling=sampling, begun=begun)


def continued(backend: Backend, tree: Tree, samplings: Sequence[SamplingParams], stop: Stop) -> AsyncGenerator[Latest]:
    """Yield the latest snapshots of the continuations of ``tree``, one for each of ``samplings``."""

    def stream(sampling: SamplingParams) -> AsyncGenerator[Snapshot]:
        return snapshots(backend, partial(request_for, backend, tree, sampling), stop)

    streams: list[Callable[[], AsyncGenerator[Snapshot]]] = [partial(stream, each) for each in samplings]
    return side_by_side(streams, stop, together=True)


def extended(run: Run, answer: Answer) -> Run:
    """``run`` with the tokens and the text of ``answer``."""
    ended = answer.finish is not None and answer.finish.reason == "stop"
    return replace(
        run,
        tokens=(*run.tokens, *answer.scored),
        text=run.text + answer.text,
        ends=(*run.ends, *(len(run.text) + end for end in answer.ends)),
        ended=ended,
    )


def grown(tree: Tree, run: int | None, answer: Answer) -> Tree:
    """``tree`` with ``answer`` at the end of its run number ``run``, or in a new run. An empty answer adds none."""
    if run is not None:
        runs = list(tree.runs)
        runs[run] = extended(runs[run], answer)
        return replace(tree, runs=tuple(runs))
    if not answer.text and not answer.scored:
        return tree
    return token_tree.added(tree, [extended(token_tree.next_run(tree), answer)])


def sampled(tree: Tree, answers: Sequence[Answer | None]) -> tuple[Tree | None, ...]:
    """For each answer, ``tree`` with all answers, of which this one is shown; None for an empty answer."""
    following = token_tree.next_run(tree)
    runs = {
        number: extended(following, answer)
        for number, answer in enumerate(answers)
        if answer and (answer.text or answer.scored)
    }
    whole = token_tree.added(tree, list(runs.values())) if runs else tree
    places = {number: len(tree.runs) + place for place, number in enumerate(runs)}
    return tuple(replace(whole, head=places[n]) if n in places else None for n in range(len(answers)))
