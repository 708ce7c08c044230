"""A text to the request that continues it, and the answers to runs of its token tree. Knows no page."""

import asyncio
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from functools import partial

from granite_demo.backend import Backend
from granite_demo.chat.answer import Answer
from granite_demo.errors import InvalidRequestError
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import MAX_SEED, SamplingParams
from granite_demo.ui.completion import token_tree
from granite_demo.ui.completion.token_tree import Run, Tree
from granite_demo.ui.streaming import Latest, Snapshot, side_by_side, snapshots

ALTERNATIVES = 10
MAX_SAMPLES = 4


def seeded(sampling: SamplingParams, samples: int) -> list[SamplingParams]:
    """One for each sample: seeds in a row from the given one, or random ones. Raises InvalidRequestError."""
    if not 1 <= samples <= MAX_SAMPLES:
        raise InvalidRequestError(f"At most {MAX_SAMPLES} samples are possible.")
    if samples == 1:
        return [sampling]
    if sampling.temperature == 0:
        raise InvalidRequestError(
            "At temperature 0 all samples are the same. Raise it in the Settings tab, or ask for one sample."
        )
    first = sampling.seed
    seeds = [secrets.randbelow(2**31) if first is None else (first + n) % (MAX_SEED + 1) for n in range(samples)]
    return [replace(sampling, seed=seed) for seed in seeds]


def start(tree: Tree, text: str, special: bool) -> Tree:
    """``tree`` where it continues ``text``, else an empty one that does."""
    return tree if (tree.prompt, tree.special) == (text, special) else Tree(text, special)


async def request_for(backend: Backend, tree: Tree, sampling: SamplingParams) -> GenerationRequest:
    """What continues the shown branch: by the ids of its tokens where they are known. Raises GraniteDemoError."""
    base, ids = token_tree.prefix(tree)
    # The constraint holds for all that is not accepted.
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


def continued(
    backend: Backend, tree: Tree, samplings: Sequence[SamplingParams], stop: threading.Event
) -> AsyncGenerator[Latest]:
    """Yield the latest snapshots of the continuations of ``tree``, one for each of ``samplings``."""
    loop = asyncio.get_running_loop()

    def stream(sampling: SamplingParams) -> AsyncGenerator[Snapshot]:
        # In the thread that makes the request, so that all its errors are told in one way.
        def build() -> GenerationRequest:
            return asyncio.run_coroutine_threadsafe(request_for(backend, tree, sampling), loop).result()

        return snapshots(backend, build, stop)

    streams: list[Callable[[], AsyncGenerator[Snapshot]]] = [partial(stream, each) for each in samplings]
    return side_by_side(streams, stop, together=True)


def extended(run: Run, answer: Answer) -> Run:
    """``run`` with what was generated after it."""
    ended = answer.finish is not None and answer.finish.reason == "stop"
    return replace(
        run,
        tokens=(*run.tokens, *answer.scored),
        text=run.text + answer.text,
        ends=(*run.ends, *(len(run.text) + end for end in answer.ends)),
        ended=ended,
    )


def grown(tree: Tree, run: int | None, answer: Answer) -> Tree:
    """``tree`` with the answer to what continues it: in its last ``run`` itself, else in a new one, unless empty."""
    if run is not None:
        runs = list(tree.runs)
        runs[run] = extended(runs[run], answer)
        return replace(tree, runs=tuple(runs))
    if not answer.text and not answer.scored:
        return tree
    return token_tree.added(tree, [extended(token_tree.next_run(tree), answer)])


def sampled(tree: Tree, answers: Sequence[Answer | None]) -> tuple[Tree | None, ...]:
    """For each answer ``tree`` with all of them, of which this one is shown; None for one that is empty."""
    following = token_tree.next_run(tree)
    runs = {
        number: extended(following, answer)
        for number, answer in enumerate(answers)
        if answer and (answer.text or answer.scored)
    }
    whole = token_tree.added(tree, list(runs.values())) if runs else tree
    places = {number: len(tree.runs) + place for place, number in enumerate(runs)}
    return tuple(replace(whole, head=places[n]) if n in places else None for n in range(len(answers)))
