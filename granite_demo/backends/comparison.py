"""Compares two ways to load a model by their next-token distributions on the same text.

The models are loaded one after the other, so that both need not fit in memory. The distributions of the reference are
kept in memory until the other model has read the text. Both models read the given text (teacher forcing), so a
difference at one token has no effect on the tokens after it. The measure is the Kullback-Leibler divergence.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from math import exp, inf
from typing import TYPE_CHECKING

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.backends.scoring import TokenizedText, check_numbers, tokenize
from granite_demo.errors import ContextOverflowError, InvalidRequestError
from granite_demo.models.installation import require_torch
from granite_demo.prompts.tokenizer import token_text
from granite_demo.types.comparison import ComparedSide, ComparedToken, Comparing, Comparison
from granite_demo.types.events import Queued
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.requests import CompareRequest
from granite_demo.types.sampling_params import SamplingParams

if TYPE_CHECKING:
    import torch


MAX_COMPARED = 2048
"""The most tokens of a text. With a vocabulary of 100,000, the float32 distributions then have 0.8 GB."""
COMPARING_SHARE = 0.4
"""The share of the free memory for the distributions. The second model also needs memory while it is loaded."""
DECODE_TOKENS = 24
"""The tokens that each model generates to measure its speed."""

NEEDS_TORCH = "A comparison of precisions"

Lease = Callable[[LoadOptions], AbstractAsyncContextManager[ReadyModel]]


@dataclass(slots=True)
class _Rows:
    """What one model predicts for each token except the first: log probability, most likely token, divergence."""

    logprobs: list[float] = field(default_factory=list)
    tops: list[int] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)


async def compare(lease: Lease, request: CompareRequest) -> AsyncGenerator[Comparing | Comparison]:
    """See ``Backend.compare``. ``lease`` gives a model for the time of its block.

    Raises InvalidRequestError if the text is too short or too long, or if the models tokenize it differently;
    ContextOverflowError; and the errors of ``lease`` and of the engine.
    """
    require_torch(NEEDS_TORCH)
    first, second = _Rows(), _Rows()
    tokenized, kept, sides, texts = None, None, [], []
    for number, (options, rows) in enumerate(((request.reference, first), (request.other, second))):
        name = options.label
        yield Comparing(f"{name}: loading the model", number / 2)
        async with lease(options) as ready:
            found = await asyncio.to_thread(_tokenize, ready, request)
            if kept is None or tokenized is None:
                tokenized = found
                kept = await asyncio.to_thread(_allocate, len(tokenized.ids) - 1, ready.loaded.model.config.vocab_size)
                measure = _keep(tokenized.ids, kept, rows)
            else:
                if tokenized.ids != found.ids or kept.shape[1] != ready.loaded.model.config.vocab_size:
                    raise InvalidRequestError("The two models have different tokens for the text. Compare one model.")
                measure = _diverge(tokenized.ids, kept, rows)
            start, spent = time.perf_counter(), 0.0
            async with aclosing(ready.engine.score(tokenized.ids, measure)) as items:
                async for item in items:
                    if isinstance(item, Queued):
                        start = time.perf_counter()
                        yield Comparing(f"{name}: waiting, {item.ahead} ahead", number / 2)
                        continue
                    done, seconds = item
                    spent += seconds
                    yield Comparing(f"{name}: reading the text", number / 2 + 0.4 * done / len(tokenized.ids))
            prefill = len(tokenized.ids) / max(1e-9, time.perf_counter() - start - spent)
            yield Comparing(f"{name}: measuring the speed", number / 2 + 0.4)
            sides.append(_side(ready, rows, prefill, await _decode_rate(ready, tokenized.ids)))
            texts.append([token_text(ready.loaded.tokenizer, index) for index in rows.tops])
    assert tokenized is not None
    parts = zip(second.divergences, first.tops, second.tops, first.logprobs, second.logprobs, *texts, strict=True)
    yield Comparison(
        tuple(
            ComparedToken(index, shown, divergence, top == other, logprob, other_logprob, top_text, other_text)
            for index, shown, (divergence, top, other, logprob, other_logprob, top_text, other_text) in zip(
                tokenized.ids[1:], tokenized.texts[1:], parts, strict=True
            )
        ),
        *sides,
    )


def _tokenize(ready: ReadyModel, request: CompareRequest) -> TokenizedText:
    tokenized = tokenize(ready.loaded.tokenizer, request.text, request.special_tokens)
    ready.loaded.check_ids(tokenized.ids)
    if len(tokenized.ids) > ready.loaded.context_length:
        raise ContextOverflowError(len(tokenized.ids), ready.loaded.context_length)
    if not 2 <= len(tokenized.ids) <= MAX_COMPARED:
        raise InvalidRequestError(
            f"The text has {len(tokenized.ids):,} tokens. A comparison needs 2 to {MAX_COMPARED:,}. Use a shorter text."
            if len(tokenized.ids) > 1
            else "The text is a single token, and a comparison needs at least 2. Add more text."
        )
    return tokenized


def _allocate(tokens: int, vocabulary: int) -> "torch.Tensor":
    """Return an uninitialized float32 tensor (tokens, vocabulary).

    Raises InvalidRequestError if memory is too small.
    """
    import psutil
    import torch

    fitting = int(COMPARING_SHARE * psutil.virtual_memory().available / (4 * vocabulary))
    if tokens > fitting:
        raise InvalidRequestError(
            f"The text has {tokens + 1:,} tokens, but the free memory can hold the distributions of only "
            f"{fitting:,}. Use a shorter text."
        )
    return torch.empty((tokens, vocabulary))


def _keep(ids: Sequence[int], kept: "torch.Tensor", rows: _Rows) -> "Callable[[int, torch.Tensor], tuple[int, float]]":
    """Return a ``Measure`` that stores the distributions in ``kept``. It returns (tokens read, seconds it took)."""

    def measure(position: int, logits: "torch.Tensor") -> tuple[int, float]:
        start = _now(logits)
        logprobs = _log_probabilities(ids, position, logits, rows)
        kept[position : position + len(logprobs)] = logprobs.cpu()
        return position + len(logits), time.perf_counter() - start

    return measure


def _diverge(
    ids: Sequence[int], kept: "torch.Tensor", rows: _Rows
) -> "Callable[[int, torch.Tensor], tuple[int, float]]":
    """Return a ``Measure`` that compares the distributions with those in ``kept``. It returns the same values."""

    def measure(position: int, logits: "torch.Tensor") -> tuple[int, float]:
        start = _now(logits)
        logprobs = _log_probabilities(ids, position, logits, rows)
        device = logits.device if logits.device.type == "cuda" else "cpu"  # the GPUs of Apple have no float64
        p, q = kept[position : position + len(logprobs)].to(device).double(), logprobs.to(device).double()
        divergences = (p.exp() * (p - q)).nan_to_num_(0.0, posinf=inf).sum(dim=-1)  # 0 · (-inf + inf) counts as 0
        rows.divergences += divergences.clamp_(min=0.0).tolist()
        return position + len(logits), time.perf_counter() - start

    return measure


def _now(logits: "torch.Tensor") -> float:
    logits[0, 0].item()  # waits until the GPU has computed the value
    return time.perf_counter()


def _log_probabilities(ids: Sequence[int], position: int, logits: "torch.Tensor", rows: _Rows) -> "torch.Tensor":
    import torch

    following = torch.tensor(ids[position + 1 : position + 1 + len(logits)], device=logits.device)
    logprobs = torch.log_softmax(logits[: len(following)], dim=-1)
    check_numbers(logprobs)
    rows.logprobs += logprobs.gather(1, following[:, None].long())[:, 0].tolist()
    rows.tops += logprobs.argmax(dim=-1).tolist()
    return logprobs


async def _decode_rate(ready: ReadyModel, ids: Sequence[int]) -> float | None:
    """Return tokens per second, without the first token, or None if the answer has less than two tokens."""
    prompt = ids[: max(1, len(ids) // 2)]  # in the middle of the text an end token is unlikely
    times: list[float] = []
    tokens = min(DECODE_TOKENS, ready.loaded.context_length - len(prompt))
    async with aclosing(ready.engine.generate(prompt, SamplingParams(max_tokens=tokens))) as items:
        async for item in items:
            if not isinstance(item, Queued):
                times.append(time.perf_counter())
    seconds = times[-1] - times[0] if times else 0.0
    return (len(times) - 1) / seconds if seconds else None


def _side(ready: ReadyModel, rows: _Rows, prefill: float, decode: float | None) -> ComparedSide:
    perplexity = exp(min(700.0, -sum(rows.logprobs) / len(rows.logprobs)))
    return ComparedSide(ready.setup.label, ready.facts, ready.loaded.weight_bytes, prefill, decode, perplexity)
