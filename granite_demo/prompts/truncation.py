"""Leaves out the oldest turns of a conversation that does not fit the context."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from granite_demo.errors import ContextOverflowError
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Fitted:
    """A request that fits the context, and its prompt."""

    request: GenerationRequest
    prompt_ids: list[int]
    dropped: int = 0
    """The number of messages that were left out."""


def reserve(sampling: SamplingParams, context: int) -> int:
    """Return how many tokens to keep free for the answer.

    That is its token limit, or a quarter of the context if it has none, but at most half of the context.
    """
    return min(sampling.max_tokens or context // 4, context // 2)


def fit(request: GenerationRequest, render: Callable[[GenerationRequest], list[int]], context: int) -> Fitted:
    """Leave out the oldest turns of ``request`` until ``render`` returns a prompt with room for the answer.

    Complete exchanges are left out: a user message with everything up to the next user message. The system message and
    the last exchange always stay. The room is ``reserve``; for the last exchange alone, room for one token is enough.
    If ``request.overflow`` is "refuse", or if the request is raw text, nothing is left out or checked.

    ``context`` is in tokens. Raises ContextOverflowError if the last exchange alone does not fit.
    """
    complete = Fitted(request, render(request))
    if request.overflow == "refuse" or request.raw:
        return complete
    room = context - reserve(request.sampling, context)
    shorter = shortened(request)
    if len(complete.prompt_ids) <= room:
        return complete
    best = _rendered(request, shorter[-1], render) if shorter else complete
    if len(best.prompt_ids) >= context:
        raise ContextOverflowError(len(best.prompt_ids), context)
    low, high = 0, len(shorter) - 1  # the shortest one is already rendered
    while low < high:
        middle = (low + high) // 2
        fitted = _rendered(request, shorter[middle], render)
        if len(fitted.prompt_ids) <= room:
            best, high = fitted, middle
        else:
            low = middle + 1
    return best


def shortened(request: GenerationRequest) -> list[GenerationRequest]:
    """Return the request without its oldest exchange, without the two oldest, and so on, down to the last exchange."""
    messages = request.messages
    first = 1 if messages[0].role == "system" else 0
    starts = [index for index, message in enumerate(messages) if message.role == "user" and index > first]
    return [replace(request, messages=messages[:first] + messages[start:]) for start in starts]


def _rendered(
    complete: GenerationRequest, part: GenerationRequest, render: Callable[[GenerationRequest], list[int]]
) -> Fitted:
    return Fitted(part, render(part), len(complete.messages) - len(part.messages))
