"""A request of the batching engine, from its arrival to its end, over any number of submissions to the loop."""

from dataclasses import dataclass, field

from granite_demo.engine.base import TokenStream
from granite_demo.engine.batch_sampling import Row
from granite_demo.types import SamplingParams

LIKELY_ANSWER = 1024
"""Tokens of the answer that a request is admitted with, if it may be longer: few answers are. Should the cache fill up
all the same, continuous batching takes the blocks of the youngest and computes them again later."""


@dataclass(slots=True, eq=False)
class Request:
    """One request from its arrival to its end."""

    prompt_ids: list[int]
    sampling: SamplingParams
    stream: TokenStream
    answer: list[int] = field(default_factory=list)
    """The tokens delivered so far."""
    id: str = ""
    """Its name in the loop; a new one each time it is submitted."""
    row: Row | None = None
    received: int = 0
    """Tokens that the loop reported since the last submission."""

    @property
    def likely_tokens(self) -> int:
        """Tokens of the cache that it will probably need."""
        assert self.sampling.max_tokens is not None
        return len(self.prompt_ids) + min(self.sampling.max_tokens, max(LIKELY_ANSWER, len(self.answer) + 1))
