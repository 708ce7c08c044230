"""Scoring a text with another server: it is echoed as a completion, with the log probability of each token."""

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

CANNOT = "The server at {} does not score a text: it tells no log probabilities of a prompt. vLLM does."


async def score_text(client: Any, one: Endpoint, request: ScoreRequest, model: str) -> list[ScoredToken | ScoreSummary]:
    """Each token of the text, and the summary. Raises GraniteDemoError."""
    began = time.perf_counter()
    prompt = request.text if request.token_ids is None else list(request.token_ids)
    fields = {"model": model, "prompt": prompt, "echo": True, "logprobs": request.alternatives, "temperature": 0.0}
    extra = special_tokens(request.special_tokens, one.kind) if request.token_ids is None else {}
    try:
        try:
            answer = await client.completions.create(**fields, max_tokens=0, extra_body=extra)
        except Exception as error:
            if not rejected(error):
                raise
            # Some want one token at least.
            answer = await client.completions.create(**fields, max_tokens=1, extra_body=extra)
        answer = answer.to_dict()
        logprobs = answer["choices"][0].get("logprobs")
    except Exception as error:  # other people's JSON
        if rejected(error) and names(error, "echo"):
            _cannot(one)
        raise explain(error, one.shown, model, one.key) from error
    tokens = scored_prompt(logprobs)
    tokens = tokens[: len(tokens) - _beyond(logprobs, prompt)]
    if not tokens:
        _cannot(one)
    total = sum(token.logprob or 0.0 for token in tokens[1:])
    return [*tokens, ScoreSummary(len(tokens), total, time.perf_counter() - began)]


def _cannot(one: Endpoint) -> NoReturn:
    one.unknown |= {"echo"}
    raise InvalidRequestError(CANNOT.format(one.shown))


def _beyond(logprobs: Any, prompt: str | list[int]) -> int:
    """How many of the tokens are not the prompt's but were generated after it."""
    if isinstance(prompt, list):
        return max(0, len(logprobs.get("tokens") or []) - len(prompt)) if isinstance(logprobs, dict) else 0
    offsets = logprobs.get("text_offset") if isinstance(logprobs, dict) else None
    offsets = offsets if isinstance(offsets, list) else []
    return sum(isinstance(offset, int) and offset >= len(prompt) for offset in offsets)
