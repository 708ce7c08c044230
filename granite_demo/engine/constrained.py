"""Constrained answers in the batching engine, whose steps overlap: what may come next is not known in time there.

So such an answer is submitted again for each of its tokens, with the answer so far and the mask of the next token. It
keeps its slot meanwhile, and the cache the whole blocks that it filled.
"""

import asyncio
from collections.abc import Collection
from dataclasses import replace

from granite_demo.constraints import Matcher
from granite_demo.engine.adjusting import check_bias, mask_of, pack
from granite_demo.engine.base import as_user_error
from granite_demo.engine.batch_sampling import Row
from granite_demo.engine.request import Request
from granite_demo.errors import GraniteDemoError


async def prepare(request: Request, vocabulary: int) -> None:
    """Before the first submission, off the event loop. Raises as ``check_bias`` and ``mask_of``."""
    check_bias(request.sampling, vocabulary)
    if request.matcher is not None:
        request.mask = await asyncio.to_thread(_next_mask, request.matcher, vocabulary)


def _next_mask(matcher: Matcher, vocabulary: int) -> bytes:
    return pack(mask_of(matcher, vocabulary))


def row_of(request: Request, slot: int) -> Row:
    """What sampling has to know of the next submission of ``request``."""
    sampling = request.sampling
    if request.matcher is not None:
        sampling = replace(sampling, max_tokens=len(request.answer) + 1)
    return Row(sampling, slot, len(request.prompt_ids), request.mask)


def goes_on(
    request: Request, error: GraniteDemoError | None, ends: Collection[int], vocabulary: int
) -> tuple[bool, GraniteDemoError | None]:
    """After a submission that ended, maybe with ``error``: whether another follows, or the error that ends the answer.

    On the loop's thread.
    """
    matcher, limit = request.matcher, request.sampling.max_tokens
    if error or matcher is None or request.answer[-1] in ends or len(request.answer) == limit:
        return False, error
    try:
        matcher.accept(request.answer[-1])
        request.mask = _next_mask(matcher, vocabulary)
    except Exception as failure:
        return False, as_user_error(failure)
    return True, None
