"""A request of the batching engine, from its arrival to its end, over any number of submissions to the loop."""

from dataclasses import dataclass, field, replace

from granite_demo.engine.batching.sampler import Row
from granite_demo.engine.protocol import answer_limit
from granite_demo.engine.token_stream import TokenStream
from granite_demo.errors import ContextOverflowError
from granite_demo.outputs.structured_output import Matcher
from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import SamplingParams

LIKELY_ANSWER = 1024
"""Tokens of the answer that a request is admitted with, if it may be longer: few answers are. Should the cache fill up
all the same, continuous batching takes the blocks of the youngest and computes them again later."""


@dataclass(slots=True, eq=False)
class Request:
    """One request from its arrival to its end."""

    prompt_ids: list[int]
    sampling: SamplingParams
    stream: TokenStream[Token]
    answer: list[int] = field(default_factory=list)
    """The tokens delivered so far."""
    id: str = ""
    """Its name in the loop; a new one each time it is submitted."""
    row: Row | None = None
    received: int = 0
    """Tokens that the loop reported since the last submission."""
    matcher: Matcher | None = None
    mask: bytes | None = None
    """With a matcher: what the next token may be."""

    @property
    def likely_tokens(self) -> int:
        """Tokens of the cache that it will probably need."""
        assert self.sampling.max_tokens is not None
        return len(self.prompt_ids) + min(self.sampling.max_tokens, max(LIKELY_ANSWER, len(self.answer) + 1))


def fitted(sampling: SamplingParams, prompt_tokens: int, capacity: int) -> SamplingParams:
    """The same, but ending where a cache of ``capacity`` tokens does. Raises ContextOverflowError."""
    limit = answer_limit(sampling)
    if prompt_tokens >= capacity:
        raise ContextOverflowError(prompt_tokens, capacity)
    return replace(sampling, max_tokens=min(limit, capacity - prompt_tokens))
