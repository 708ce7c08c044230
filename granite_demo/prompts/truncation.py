"""Which messages of a conversation are left out so that it fits the context. Pure; knows no tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from granite_demo.errors import ContextOverflowError
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Fitted:
    """A request that fits, and its prompt."""

    request: GenerationRequest
    prompt_ids: list[int]
    dropped: int = 0
    """Messages left out."""


def reserve(sampling: SamplingParams, context: int) -> int:
    """Tokens to keep free for the answer: as many as it may have, or a quarter of the context; at most half of it."""
    return min(sampling.max_tokens or context // 4, context // 2)


def fit(request: GenerationRequest, render: Callable[[GenerationRequest], list[int]], context: int) -> Fitted:
    """``request`` with its oldest turns left out until its prompt, as ``render`` makes it, leaves room to answer.

    Kept are the system message, and the last user's turn with what follows it. What goes is whole exchanges, a user's
    turn with all up to the next one, so that the rest begins with a user. The room is ``reserve``; the last turn alone
    only has to leave any. Where overflow is to be refused, and for raw text, nothing is left out or checked.

    Raises ContextOverflowError when the last turn alone does not fit.
    """
    whole = Fitted(request, render(request))
    if request.overflow == "refuse" or request.raw:
        return whole
    room = context - reserve(request.sampling, context)
    shorter = shortened(request)
    if len(whole.prompt_ids) <= room:
        return whole
    best = _rendered(request, shorter[-1], render) if shorter else whole
    if len(best.prompt_ids) >= context:
        raise ContextOverflowError(len(best.prompt_ids), context)
    low, high = 0, len(shorter) - 1  # the shortest is known
    while low < high:
        middle = (low + high) // 2
        fitted = _rendered(request, shorter[middle], render)
        if len(fitted.prompt_ids) <= room:
            best, high = fitted, middle
        else:
            low = middle + 1
    return best


def shortened(request: GenerationRequest) -> list[GenerationRequest]:
    """The request with one exchange less, two less and so on, down to the last one."""
    messages = request.messages
    first = 1 if messages[0].role == "system" else 0
    starts = [index for index, message in enumerate(messages) if message.role == "user" and index > first]
    return [replace(request, messages=messages[:first] + messages[start:]) for start in starts]


def _rendered(
    whole: GenerationRequest, part: GenerationRequest, render: Callable[[GenerationRequest], list[int]]
) -> Fitted:
    return Fitted(part, render(part), len(whole.messages) - len(part.messages))
