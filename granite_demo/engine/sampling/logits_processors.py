"""Changes to logits that few requests ask for: a constraint's mask, bias, and penalties for what was said already.

In vLLM's order: mask and bias, then the repetition penalty (``sampling.penalise``), then the frequency and presence
penalties, all before the temperature (vllm/v1/sample/sampler.py, ``Sampler``; vllm/model_executor/layers/utils.py,
``apply_penalties``). Bias and penalties are OpenAI's: logit - count * frequency - (count > 0) * presence, over the
tokens of the answer alone (platform.openai.com/docs/api-reference/parameter-details).
"""

from collections.abc import Sequence

import numpy as np
import torch

from granite_demo.engine.sampling.reference import penalise
from granite_demo.errors import EngineError, InvalidRequestError
from granite_demo.outputs.structured_output import Matcher
from granite_demo.types.sampling_params import SamplingParams


def lessen(logits: torch.Tensor, counts: torch.Tensor, frequency: torch.Tensor, presence: torch.Tensor) -> torch.Tensor:
    """Logits less the penalties. ``logits``, ``counts``: (B, V) float32; ``frequency``, ``presence``: (B,)."""
    return logits - counts * frequency[:, None] - (counts > 0) * presence[:, None]


def check_bias(sampling: SamplingParams, vocabulary: int) -> None:
    """Raise InvalidRequestError for a bias on a token that the model has not."""
    for token, _ in sampling.logit_bias:
        if token >= vocabulary:
            raise InvalidRequestError(f"logit_bias names token {token}, but the model has only {vocabulary} tokens.")


def mask_of(matcher: Matcher, vocabulary: int) -> np.ndarray:
    """Which tokens may come next, bool of shape (vocabulary,). Raises EngineError if none may, and as ``allowed``."""
    allowed = matcher.allowed()[:vocabulary]
    if not allowed.any():
        raise EngineError("Nothing may follow in this answer, and the model has no end token.")
    # A model's output may have more rows than its tokenizer has tokens.
    return np.pad(allowed, (0, vocabulary - len(allowed)))


def bias_of(sampling: SamplingParams, mask: np.ndarray | None, vocabulary: int) -> torch.Tensor:
    """What is added to the logits, (vocabulary,) float32: -inf where the ``mask`` is False."""
    bias = torch.zeros(vocabulary)
    for token, value in sampling.logit_bias:
        bias[token] += value
    return bias if mask is None else bias.masked_fill_(~torch.from_numpy(mask), -torch.inf)


def counts_of(answer: Sequence[int], vocabulary: int) -> torch.Tensor:
    """How often each token is in the answer, (vocabulary,) float32."""
    return torch.bincount(torch.tensor(answer, dtype=torch.int64), minlength=vocabulary).float()


class Adjuster:
    """One request's changes, and the state that they depend on."""

    def __init__(self, sampling: SamplingParams, matcher: Matcher | None, device: torch.device) -> None:
        self._sampling = sampling
        self._matcher = matcher
        self._bias: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None
        self._penalties = torch.tensor([[sampling.frequency_penalty], [sampling.presence_penalty]], device=device)
        self._counting = bool(self._penalties.any())

    def before(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits, (1, V), with mask and bias."""
        vocabulary = logits.shape[1]
        if self._bias is None:
            check_bias(self._sampling, vocabulary)
            self._bias = bias_of(self._sampling, None, vocabulary).to(logits.device)
        if self._sampling.logit_bias:
            logits = logits + self._bias
        if self._matcher is None:
            return logits
        mask = torch.from_numpy(mask_of(self._matcher, vocabulary)).to(logits.device)
        return logits.masked_fill(~mask, -torch.inf)

    def after(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits, (1, V), less the penalties for the answer so far."""
        if not self._counting:
            return logits
        if self._counts is None:
            self._counts = torch.zeros_like(logits)
        return lessen(logits, self._counts, *self._penalties)

    def accept(self, token_id: int) -> None:
        """Append a token to the answer."""
        if self._counts is not None:
            self._counts[0, token_id] += 1
        if self._matcher is not None:
            self._matcher.accept(token_id)


def pack(mask: np.ndarray) -> bytes:
    """A mask as bits, which travel with a ``Row``."""
    return np.packbits(mask).tobytes()


def unpack(mask: bytes, vocabulary: int) -> np.ndarray:
    """The mask again."""
    return np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=vocabulary).astype(bool)


class Tables:
    """The changes of all requests of a batch, a line for each slot and one more that changes nothing.

    Made when the first request needs them, 8 bytes for each slot and token; graphs may be captured from then on.
    """

    def __init__(self, slots: int, vocabulary: int, device: torch.device) -> None:
        self._shape = (slots + 1, vocabulary)
        self._device = device
        self._bias: torch.Tensor | None = None
        self._counts = torch.zeros(0, device=device)

    def write(self, slot: int, sampling: SamplingParams, mask: bytes | None, answer: Sequence[int]) -> None:
        """Set the line of a request that has ``answer`` so far. ``mask``: see ``pack``."""
        vocabulary = self._shape[1]
        if self._bias is None:
            self._bias, self._counts = (torch.zeros(self._shape, device=self._device) for _ in range(2))
        allowed = None if mask is None else unpack(mask, vocabulary)
        self._bias[slot] = bias_of(sampling, allowed, vocabulary).to(self._device)
        self._counts[slot] = counts_of(answer, vocabulary).to(self._device)

    def adjust(
        self,
        logits: torch.Tensor,
        line: torch.Tensor,
        seen: torch.Tensor,
        penalty: torch.Tensor,
        frequency: torch.Tensor,
        presence: torch.Tensor,
    ) -> torch.Tensor:
        """The logits, (B, V), with all changes. ``line``: (B,), theirs in the tables; for the rest see ``lessen``."""
        assert self._bias is not None
        logits = penalise(logits + self._bias[line], seen, penalty)
        return lessen(logits, self._counts[line], frequency, presence)

    def count(self, line: torch.Tensor, choice: torch.Tensor) -> None:
        """Count the chosen tokens, (B,)."""
        places = line * self._shape[1] + choice
        self._counts.view(-1).scatter_add_(0, places, torch.ones_like(places, dtype=torch.float32))
