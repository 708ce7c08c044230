"""The suite ``ttft``: time to first token of an idle engine, for a new prompt and for the next turn of a chat."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.bench import baselines
from granite_demo.bench.measure import GREEDY, Progress, Prompts, Spread, TimedRun, Way, ask, in_turns
from granite_demo.bench.options import BenchSizes
from granite_demo.engine.protocol import Engine
from granite_demo.loading.loaded_model import LoadedModel

ANSWER_TOKENS = 8
NEXT_TURN = 20
"""Tokens that a follow-up adds to the chat."""
FIRST_TOKENS = 2
"""Tokens to generate if only the first is measured. A rate needs two."""


@dataclass(frozen=True, slots=True)
class TtftRow:
    """The times for one prompt length, in seconds.

    A follow-up is a prompt of the same length, of which all but the last turn is an earlier request and its answer.
    """

    prompt_tokens: int
    cold: Spread
    follow_up: Spread
    documented: Spread | None
    """``generate`` with a new prompt, in the precision of the engine."""
    documented_follow_up: Spread | None = None
    """``generate`` with the ``past_key_values`` of the previous turn."""


def measure(
    ready: ReadyModel, copies: Sequence[LoadedModel], sizes: BenchSizes, progress: Progress
) -> tuple[tuple[TtftRow, ...], list[str]]:
    """Measure each length that fits in the context. Also returns notes on what was not measured."""
    kept, notes = fitting_lengths(sizes.lengths, ready.loaded.context_length)
    prompts = Prompts(ready.loaded.vocabulary, seed=1)
    ways: list[Way[TimedRun]] = []
    for length in kept:
        ways.append(Way(f"{length} tokens, cold", partial(_cold, ready.engine, prompts, length)))
        ways.append(Way(f"{length} tokens, follow-up", partial(_follow_up, ready.engine, prompts, length)))
        for copy in baselines.like(ready.loaded, copies):
            label = f"{baselines.GENERATE} with {length} tokens"
            ways.append(Way(label, partial(_documented, copy, prompts, length), may_fail=True))
            label = f"{baselines.GENERATE} with past_key_values and {length} tokens"
            ways.append(Way(label, partial(_documented_follow_up, copy, prompts, length), may_fail=True))
    turns = in_turns(ways, sizes.rounds, progress)
    each = len(ways) // max(1, len(kept))
    rows = [row_of(length, *turns.samples[each * index : each * (index + 1)]) for index, length in enumerate(kept)]
    return tuple(rows), [*notes, *turns.left_out]


def fitting_lengths(wanted: Sequence[int], context: int) -> tuple[tuple[int, ...], list[str]]:
    """Return the lengths in ``wanted`` that leave space in the context for an answer, and a note on the others."""
    kept = tuple(length for length in wanted if length + FIRST_TOKENS <= context)
    dropped = [f"{length:,}" for length in wanted if length not in kept]
    note = f"Not measured: prompts of {', '.join(dropped)} tokens (the context has {context:,})."
    return kept, [note] if dropped else []


def row_of(
    length: int,
    cold: Sequence[TimedRun],
    follow_up: Sequence[TimedRun],
    others: Sequence[TimedRun] = (),
    others_follow_up: Sequence[TimedRun] = (),
) -> TtftRow:
    """Return the row of one length. ``others`` are the runs of ``generate``, if it was measured."""
    return TtftRow(
        prompt_tokens=length,
        cold=Spread.of(run.ttft for run in cold),
        follow_up=Spread.of(run.ttft for run in follow_up),
        documented=Spread.of(run.ttft for run in others) if others else None,
        documented_follow_up=Spread.of(run.ttft for run in others_follow_up) if others_follow_up else None,
    )


def _cold(engine: Engine, prompts: Prompts, length: int) -> TimedRun:
    return ask(engine, [prompts.one(length)], replace(GREEDY, max_tokens=FIRST_TOKENS))


def _follow_up(engine: Engine, prompts: Prompts, length: int) -> TimedRun:
    first = prompts.one(length - ANSWER_TOKENS - NEXT_TURN)
    answer = ask(engine, [first], replace(GREEDY, max_tokens=ANSWER_TOKENS)).answers[0].ids
    chat = [*first, *answer, *prompts.one(NEXT_TURN)]
    return ask(engine, [chat], replace(GREEDY, max_tokens=FIRST_TOKENS))


def _documented(copy: LoadedModel, prompts: Prompts, length: int) -> TimedRun:
    return baselines.generate(copy, prompts.one(length), FIRST_TOKENS)


def _documented_follow_up(copy: LoadedModel, prompts: Prompts, length: int) -> TimedRun:
    first = prompts.one(length - ANSWER_TOKENS - NEXT_TURN)
    return baselines.follow_up(copy, first, ANSWER_TOKENS, prompts.one(NEXT_TURN), FIRST_TOKENS)
