"""How far two ways to load a model differ: both read the same text, and what each would have said is compared.

One after the other, so that they need not fit beside each other; in between, the reference's whole distributions
wait in memory. Both are fed the text as it is (teacher forcing), so a difference does not carry on to what follows.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from math import exp, inf
from typing import TYPE_CHECKING

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.backends.scoring import Reading, check_numbers, read
from granite_demo.errors import ContextOverflowError, InvalidRequestError
from granite_demo.prompts.tokenizer import token_text
from granite_demo.types.comparison import ComparedSide, ComparedToken, Comparing, Comparison
from granite_demo.types.events import Queued
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.requests import CompareRequest
from granite_demo.types.sampling_params import SamplingParams

if TYPE_CHECKING:
    import torch


MAX_COMPARED = 2048
"""Of a text: with a vocabulary of 100,000 the reference's distributions are 0.8 GB then."""
COMPARING_SHARE = 0.4
"""The part of the machine's free memory that they may take; the second model is loaded through it, too."""
DECODED = 24
"""Tokens that each side writes, to see how fast."""

Lease = Callable[[LoadOptions], AbstractAsyncContextManager[ReadyModel]]


@dataclass(slots=True)
class _Rows:
    """What one side says of each token but the first."""

    logprobs: list[float] = field(default_factory=list)
    tops: list[int] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)


async def compare(lease: Lease, request: CompareRequest) -> AsyncGenerator[Comparing | Comparison]:
    """See ``Backend.compare``. ``lease`` gives a model for as long as its block lasts."""
    ours, theirs = _Rows(), _Rows()
    reading, kept, sides, texts = None, None, [], []
    for number, (options, rows) in enumerate(((request.reference, ours), (request.other, theirs))):
        name = options.label
        yield Comparing(f"{name}: getting the model ready", number / 2)
        async with lease(options) as ready:
            found = await asyncio.to_thread(_read, ready, request)
            if kept is None or reading is None:
                reading = found
                kept = await asyncio.to_thread(_room, len(reading.ids) - 1, ready.loaded.model.config.vocab_size)
                measure = _keep(reading.ids, kept, rows)
            else:
                if reading.ids != found.ids or kept.shape[1] != ready.loaded.model.config.vocab_size:
                    raise InvalidRequestError("The two models cut the text into different tokens. Compare one model.")
                measure = _diverge(reading.ids, kept, rows)
            start, spent = time.perf_counter(), 0.0
            async with aclosing(ready.engine.score(reading.ids, measure)) as items:
                async for item in items:
                    if isinstance(item, Queued):
                        start = time.perf_counter()
                        yield Comparing(f"{name}: waiting, {item.ahead} ahead", number / 2)
                        continue
                    done, seconds = item
                    spent += seconds
                    yield Comparing(f"{name}: reading", number / 2 + 0.4 * done / len(reading.ids))
            prefill = len(reading.ids) / max(1e-9, time.perf_counter() - start - spent)
            yield Comparing(f"{name}: writing a few tokens, to see how fast", number / 2 + 0.4)
            sides.append(_side(ready, rows, prefill, await _decode_rate(ready, reading.ids)))
            texts.append([token_text(ready.loaded.tokenizer, index) for index in rows.tops])
    assert reading is not None
    parts = zip(theirs.divergences, ours.tops, theirs.tops, ours.logprobs, theirs.logprobs, *texts, strict=True)
    yield Comparison(
        tuple(
            ComparedToken(index, shown, divergence, mine == other, ours_of, theirs_of, ours_text, theirs_text)
            for index, shown, (divergence, mine, other, ours_of, theirs_of, ours_text, theirs_text) in zip(
                reading.ids[1:], reading.texts[1:], parts, strict=True
            )
        ),
        *sides,
    )


def _read(ready: ReadyModel, request: CompareRequest) -> Reading:
    reading = read(ready.loaded.tokenizer, request.text, request.special_tokens)
    if len(reading.ids) > ready.loaded.context_length:
        raise ContextOverflowError(len(reading.ids), ready.loaded.context_length)
    count = len(reading.ids)
    if not 2 <= count <= MAX_COMPARED:
        raise InvalidRequestError(
            f"The text has {count:,} tokens; a comparison takes 2 to {MAX_COMPARED:,}. Choose a shorter text."
            if count > 1
            else "The text is a single token, which nothing predicts. Write more of it."
        )
    return reading


def _room(tokens: int, vocabulary: int) -> "torch.Tensor":
    """For the log probabilities of ``tokens`` distributions. Raises InvalidRequestError where memory is short."""
    import psutil
    import torch

    fitting = int(COMPARING_SHARE * psutil.virtual_memory().available / (4 * vocabulary))
    if tokens > fitting:
        raise InvalidRequestError(
            f"The text has {tokens + 1:,} tokens, but the memory that is free here holds the distributions of "
            f"{fitting:,}. Choose a shorter text."
        )
    return torch.empty((tokens, vocabulary))


def _keep(ids: Sequence[int], kept: "torch.Tensor", rows: _Rows) -> "Callable[[int, torch.Tensor], tuple[int, float]]":
    """A ``Measure``: puts the distributions into ``kept``. Tells how many tokens are read, and the seconds it took."""

    def measure(position: int, logits: "torch.Tensor") -> tuple[int, float]:
        start = _now(logits)
        mine = _log_probabilities(ids, position, logits, rows)
        kept[position : position + len(mine)] = mine.cpu()
        return position + len(logits), time.perf_counter() - start

    return measure


def _diverge(
    ids: Sequence[int], kept: "torch.Tensor", rows: _Rows
) -> "Callable[[int, torch.Tensor], tuple[int, float]]":
    """The same: compares the distributions with those in ``kept``."""

    def measure(position: int, logits: "torch.Tensor") -> tuple[int, float]:
        start = _now(logits)
        mine = _log_probabilities(ids, position, logits, rows)
        place = logits.device if logits.device.type == "cuda" else "cpu"  # Apple's GPU has no float64
        p, q = kept[position : position + len(mine)].to(place).double(), mine.to(place).double()
        divergences = (p.exp() * (p - q)).nan_to_num_(0.0, posinf=inf).sum(dim=-1)  # 0 · (-inf + inf) counts nothing
        rows.divergences += divergences.clamp_(min=0.0).tolist()
        return position + len(logits), time.perf_counter() - start

    return measure


def _now(logits: "torch.Tensor") -> float:
    logits[0, 0].item()  # a GPU is behind; whoever reads a value waits for it
    return time.perf_counter()


def _log_probabilities(ids: Sequence[int], position: int, logits: "torch.Tensor", rows: _Rows) -> "torch.Tensor":
    import torch

    following = torch.tensor(ids[position + 1 : position + 1 + len(logits)], device=logits.device)
    mine = torch.log_softmax(logits[: len(following)], dim=-1)
    check_numbers(mine)
    rows.logprobs += mine.gather(1, following[:, None].long())[:, 0].tolist()
    rows.tops += mine.argmax(dim=-1).tolist()
    return mine


async def _decode_rate(ready: ReadyModel, ids: Sequence[int]) -> float | None:
    """Tokens per second after the first one; None where the answer ends at once."""
    prompt = ids[: max(1, len(ids) // 2)]  # within the text: few models end there
    times: list[float] = []
    most = min(DECODED, ready.loaded.context_length - len(prompt))
    async with aclosing(ready.engine.generate(prompt, SamplingParams(max_tokens=most))) as items:
        async for item in items:
            if not isinstance(item, Queued):
                times.append(time.perf_counter())
    seconds = times[-1] - times[0] if times else 0.0
    return (len(times) - 1) / seconds if seconds else None


def _side(ready: ReadyModel, rows: _Rows, prefill: float, decode: float | None) -> ComparedSide:
    perplexity = exp(min(700.0, -sum(rows.logprobs) / len(rows.logprobs)))
    return ComparedSide(ready.setup.label, ready.facts, ready.loaded.weight_bytes, prefill, decode, perplexity)
