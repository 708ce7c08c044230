"""A request of the batching engine. It can be submitted to the loop several times."""

from dataclasses import dataclass, field, replace

from granite_demo.engine.batching.sampler import Row
from granite_demo.engine.protocol import answer_limit
from granite_demo.engine.token_stream import TokenStream
from granite_demo.errors import ContextOverflowError
from granite_demo.outputs.structured_output import Matcher
from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import SamplingParams

LIKELY_ANSWER = 1024
"""The tokens that are reserved for an answer that can be longer, because few answers are.

If the cache fills up, continuous batching takes the blocks of the newest request and computes them again later.
"""


@dataclass(slots=True, eq=False)
class Request:
    """One request from its arrival to its end."""

    prompt_ids: list[int]
    sampling: SamplingParams
    stream: TokenStream[Token]
    answer: list[int] = field(default_factory=list)
    """The tokens delivered so far."""
    id: str = ""
    """Its name in the loop. Each submission has a new one."""
    row: Row | None = None
    received: int = 0
    """The number of tokens from the loop since the last submission."""
    matcher: Matcher | None = None
    mask: bytes | None = None
    """With a matcher: the packed mask of the tokens that can come next."""

    @property
    def likely_tokens(self) -> int:
        """The estimated number of cache tokens that the request needs."""
        assert self.sampling.max_tokens is not None
        return len(self.prompt_ids) + min(self.sampling.max_tokens, max(LIKELY_ANSWER, len(self.answer) + 1))


def fit_to_cache(sampling: SamplingParams, prompt_tokens: int, capacity: int) -> SamplingParams:
    """Limit ``max_tokens`` to a cache of ``capacity`` tokens. Raises ContextOverflowError."""
    limit = answer_limit(sampling)
    if prompt_tokens >= capacity:
        raise ContextOverflowError(prompt_tokens, capacity)
    return replace(sampling, max_tokens=min(limit, capacity - prompt_tokens))
