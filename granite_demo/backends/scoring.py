"""Scores a text token by token: log probability, entropy and the most likely alternatives.

The values are computed on the thread of the engine, where the logits are.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.engine.protocol import Engine, TokenScorer
from granite_demo.errors import ContextOverflowError, InvalidRequestError
from granite_demo.prompts import render
from granite_demo.prompts.tokenizer import token_text
from granite_demo.types.events import Queued, ScoreSummary
from granite_demo.types.logprobs import ScoredToken, Token, TokenAlternative
from granite_demo.types.requests import GenerationRequest, ScoreRequest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """The tokens of a text: their ids, and their texts."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    """Joined, they are the text. If a character has several tokens, the first has all of it."""


def tokenize(tokenizer: Any, text: str, special_tokens: bool, token_ids: Sequence[int] | None = None) -> TokenizedText:
    """Tokenize ``text``, or use ``token_ids`` if given. Raises InvalidRequestError."""
    if token_ids:
        request = GenerationRequest(prompt_ids=tuple(token_ids))
    else:
        request = GenerationRequest(prompt=text, special_tokens=special_tokens)
    tokens = [token for part in render.render_parts(tokenizer, request) for token in part.tokens]
    if not tokens:
        raise InvalidRequestError("The text has no tokens.")
    return TokenizedText(tuple(index for index, _ in tokens), tuple(shown for _, shown in tokens))


async def score(ready: ReadyModel, request: ScoreRequest) -> AsyncGenerator[Queued | ScoredToken | ScoreSummary]:
    """See ``Backend.score``. Raises InvalidRequestError, ContextOverflowError and the errors of the engine."""
    start = time.perf_counter()
    loaded = ready.loaded
    # Not on the event loop: a long text takes a second.
    tokenized = await asyncio.to_thread(
        tokenize, loaded.tokenizer, request.text, request.special_tokens, request.token_ids
    )
    loaded.check_ids(tokenized.ids)
    if len(tokenized.ids) > loaded.context_length:
        raise ContextOverflowError(len(tokenized.ids), loaded.context_length)
    total, count = 0.0, 0
    async with aclosing(_predictions(ready.engine, tokenized.ids, request.alternatives)) as items:
        async for item in items:
            if isinstance(item, Queued):
                yield item
                continue
            for predicted in item if count else (Predicted(), *item):
                yield _scored(loaded.tokenizer, tokenized, count, predicted)
                total += predicted.logprob or 0.0
                count += 1
    if not count:  # a single token, which nothing predicts
        yield _scored(loaded.tokenizer, tokenized, 0, Predicted())
        count = 1
    yield ScoreSummary(count, total, time.perf_counter() - start)


async def _predictions(
    engine: Engine, ids: Sequence[int], alternatives: int
) -> "AsyncGenerator[list[Predicted] | Queued]":
    if not isinstance(engine, TokenScorer):
        async with aclosing(engine.score(ids, measure_of(ids, alternatives))) as chunks:
            async for chunk in chunks:
                yield chunk
        return
    async with aclosing(engine.score_tokens(ids, alternatives)) as items:
        async for item in items:
            yield item if isinstance(item, Queued) else [Predicted.of(token) for token in item]


@dataclass(frozen=True, slots=True)
class Predicted:
    """The prediction for one token: log probability and entropy in nats. The first token has none."""

    logprob: float | None = None
    entropy: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()
    """(token id, log probability) in descending order."""

    @classmethod
    def of(cls, token: Token) -> "Predicted":
        """The same of a token that an engine has scored itself."""
        return cls(token.logprob, token.entropy, tuple((index, value) for index, value, _ in token.alternatives))


def measure_of(ids: Sequence[int], alternatives: int) -> "Callable[[int, torch.Tensor], list[Predicted]]":
    """Return a ``Measure`` of the predictions that each chunk of ``ids`` makes for the tokens after it.

    Its argument ``logits`` has the shape (tokens of the chunk, vocabulary).
    """

    def measure(position: int, logits: "torch.Tensor") -> list[Predicted]:
        import torch

        following = torch.tensor(ids[position + 1 : position + 1 + len(logits)], device=logits.device).long()
        rows = torch.log_softmax(logits[: len(following)], dim=-1)
        check_numbers(rows)
        entropies = torch.special.entr(rows.exp()).sum(dim=-1).tolist()
        chosen = rows.gather(1, following[:, None])[:, 0].tolist()
        values, others = (part.tolist() for part in rows.topk(min(alternatives, rows.shape[1]), dim=-1))
        likeliest = [tuple(zip(*row, strict=True)) for row in zip(others, values, strict=True)]
        return [Predicted(*row) for row in zip(chosen, entropies, likeliest, strict=True)]

    return measure


def _scored(tokenizer: Any, tokenized: TokenizedText, position: int, predicted: Predicted) -> ScoredToken:
    others = tuple(
        TokenAlternative(index, token_text(tokenizer, index), logprob) for index, logprob in predicted.likeliest
    )
    index, text = tokenized.ids[position], tokenized.texts[position]
    return ScoredToken(index, text, predicted.logprob, None, predicted.entropy, others)


def check_numbers(rows: "torch.Tensor") -> None:
    """Raise EngineError if an output of the model is not a number."""
    from granite_demo.engine.sampling.reference import not_a_number

    if bool(rows.isnan().any()):
        raise not_a_number()
