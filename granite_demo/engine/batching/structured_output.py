"""Constrained answers in the batching engine.

The steps of this engine overlap, so the mask of the next token is not known in time. Therefore a constrained answer is
submitted again for each token, with the answer so far and the mask. It keeps its slot, and the cache keeps the complete
blocks that it filled. Masks are computed outside the loop, which continues for the other requests.
"""

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from granite_demo.engine.batching.request import Request
from granite_demo.engine.batching.sampler import Row
from granite_demo.engine.failures import as_user_error
from granite_demo.engine.sampling.logits_processors import allowed_mask, check_bias, pack
from granite_demo.errors import GraniteDemoError
from granite_demo.outputs.structured_output import Matcher


async def prepare(request: Request, vocabulary: int) -> None:
    """Compute the first mask outside the event loop. Raises as ``check_bias`` and ``allowed_mask``."""
    check_bias(request.sampling, vocabulary)
    if request.matcher is not None:
        request.mask = await asyncio.to_thread(_next_mask, request.matcher, vocabulary)


def _next_mask(matcher: Matcher, vocabulary: int) -> bytes:
    return pack(allowed_mask(matcher, vocabulary))


def row_of(request: Request, slot: int) -> Row:
    """Return the sampling data for the next submission of ``request``."""
    sampling = request.sampling
    if request.matcher is not None:
        sampling = replace(sampling, max_tokens=len(request.answer) + 1)
    return Row(sampling, slot, len(request.prompt_ids), request.mask)


def continues(request: Request, ends: Collection[int]) -> bool:
    """Whether another submission follows the one that ended."""
    complete = request.answer[-1] in ends or len(request.answer) == request.sampling.max_tokens
    return request.matcher is not None and not complete


class Masks:
    """Computes masks on separate threads."""

    def __init__(self, vocabulary: int, computed: Callable[[Request, GraniteDemoError | None], None]) -> None:
        """``computed`` is called on these threads, with a request and None, or with the error that ends the request."""
        self._vocabulary = vocabulary
        self._computed = computed
        self._threads = ThreadPoolExecutor(2, "engine-masks")

    def compute(self, request: Request) -> None:
        """Start to compute the mask of the next token."""
        with suppress(RuntimeError):  # closed, so the request has ended
            self._threads.submit(self._compute, request)

    def _compute(self, request: Request) -> None:
        error = None
        try:
            assert request.matcher is not None
            request.matcher.accept(request.answer[-1])
            request.mask = _next_mask(request.matcher, self._vocabulary)
        except Exception as failure:
            error = as_user_error(failure)
        self._computed(request, error)

    def close(self) -> None:
        """End the threads without waiting for them."""
        self._threads.shutdown(wait=False)
