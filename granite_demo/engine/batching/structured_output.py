"""Constrained answers in the batching engine, whose steps overlap: what may come next is not known in time there.

So such an answer is submitted again for each of its tokens, with the answer so far and the mask of the next token. It
keeps its slot meanwhile, and the cache the whole blocks that it filled. A mask is computed beside the loop, whose steps
go on for the others.
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
    """Before the first submission, off the event loop. Raises as ``check_bias`` and ``allowed_mask``."""
    check_bias(request.sampling, vocabulary)
    if request.matcher is not None:
        request.mask = await asyncio.to_thread(_next_mask, request.matcher, vocabulary)


def _next_mask(matcher: Matcher, vocabulary: int) -> bytes:
    return pack(allowed_mask(matcher, vocabulary))


def row_of(request: Request, slot: int) -> Row:
    """What sampling has to know of the next submission of ``request``."""
    sampling = request.sampling
    if request.matcher is not None:
        sampling = replace(sampling, max_tokens=len(request.answer) + 1)
    return Row(sampling, slot, len(request.prompt_ids), request.mask)


def goes_on(request: Request, ends: Collection[int]) -> bool:
    """Whether another submission follows the one that ended."""
    whole = request.answer[-1] in ends or len(request.answer) == request.sampling.max_tokens
    return request.matcher is not None and not whole


class Masks:
    """Computes masks on threads of its own."""

    def __init__(self, vocabulary: int, computed: Callable[[Request, GraniteDemoError | None], None]) -> None:
        """``computed`` is called there, with a request that has its next mask, or with the error that ends it."""
        self._vocabulary = vocabulary
        self._computed = computed
        self._threads = ThreadPoolExecutor(2, "engine-masks")

    def compute(self, request: Request) -> None:
        """Begin with the mask of the token after the answer so far."""
        with suppress(RuntimeError):  # closed: the request has ended, too
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
        """Let the threads end."""
        self._threads.shutdown(wait=False)
