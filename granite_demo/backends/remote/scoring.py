"""Scores a text on another server: the server echoes it as a completion with the log probability of each token."""

import time
from typing import Any, NoReturn

from granite_demo.backends.remote.endpoints import Endpoint
from granite_demo.backends.remote.errors import explain, names, rejected
from granite_demo.backends.remote.request import special_tokens
from granite_demo.backends.remote.response import scored_prompt
from granite_demo.errors import InvalidRequestError
from granite_demo.types.events import ScoreSummary
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.requests import ScoreRequest

NO_LOGPROBS = "The server at {} cannot score a text: it returns no log probabilities for a prompt. vLLM does."


async def score_text(
    client: Any, endpoint: Endpoint, request: ScoreRequest, model: str
) -> list[ScoredToken | ScoreSummary]:
    """Return the scored tokens of the text and the summary. Raises GraniteDemoError."""
    start = time.perf_counter()
    prompt = request.text if request.token_ids is None else list(request.token_ids)
    fields = {"model": model, "prompt": prompt, "echo": True, "logprobs": request.alternatives, "temperature": 0.0}
    extra = special_tokens(request.special_tokens, endpoint.kind) if request.token_ids is None else {}
    try:
        try:
            answer = await client.completions.create(**fields, max_tokens=0, extra_body=extra)
        except Exception as error:
            if not rejected(error):
                raise
            # Some servers require at least one new token.
            answer = await client.completions.create(**fields, max_tokens=1, extra_body=extra)
        answer = answer.to_dict()
        logprobs = answer["choices"][0].get("logprobs")
    except Exception as error:  # the JSON can have any form
        if rejected(error) and names(error, "echo"):
            _cannot(endpoint)
        raise explain(error, endpoint.address, model, endpoint.key) from error
    tokens = scored_prompt(logprobs)
    tokens = tokens[: len(tokens) - _generated(logprobs, prompt)]
    if not tokens:
        _cannot(endpoint)
    total = sum(token.logprob or 0.0 for token in tokens[1:])
    return [*tokens, ScoreSummary(len(tokens), total, time.perf_counter() - start)]


def _cannot(endpoint: Endpoint) -> NoReturn:
    endpoint.unsupported |= {"echo"}
    raise InvalidRequestError(NO_LOGPROBS.format(endpoint.address))


def _generated(logprobs: Any, prompt: str | list[int]) -> int:
    """Return the number of tokens that were generated after the prompt."""
    if isinstance(prompt, list):
        return max(0, len(logprobs.get("tokens") or []) - len(prompt)) if isinstance(logprobs, dict) else 0
    offsets = logprobs.get("text_offset") if isinstance(logprobs, dict) else None
    offsets = offsets if isinstance(offsets, list) else []
    return sum(isinstance(offset, int) and offset >= len(prompt) for offset in offsets)
