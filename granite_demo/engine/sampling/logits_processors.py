"""The changes to logits that only some requests need: constraint masks, logit bias, frequency and presence penalties.

The order is that of vLLM: mask and bias, then the repetition penalty (``reference.penalise``), then the frequency and
presence penalties, all before the temperature (vllm/v1/sample/sampler.py, ``Sampler``;
vllm/model_executor/layers/utils.py, ``apply_penalties``). Bias and penalties are those of OpenAI: logit - count *
frequency - (count > 0) * presence, for the tokens of the answer only
(platform.openai.com/docs/api-reference/parameter-details).
"""

from collections.abc import Sequence

import numpy as np
import torch

from granite_demo.engine.sampling.reference import penalise
from granite_demo.errors import EngineError, InvalidRequestError
from granite_demo.outputs.structured_output import Matcher
from granite_demo.types.sampling_params import SamplingParams


def apply_penalties(
    logits: torch.Tensor, counts: torch.Tensor, frequency: torch.Tensor, presence: torch.Tensor
) -> torch.Tensor:
    """Subtract the penalties from the logits.

    ``logits``, ``counts``: (B, V) float32. ``frequency``, ``presence``: (B,).
    """
    return logits - counts * frequency[:, None] - (counts > 0) * presence[:, None]


def check_bias(sampling: SamplingParams, vocabulary: int) -> None:
    """Raise InvalidRequestError for a bias on a token that the model does not have."""
    for token, _ in sampling.logit_bias:
        if token >= vocabulary:
            raise InvalidRequestError(f"logit_bias names token {token}, but the model has only {vocabulary} tokens.")


def allowed_mask(matcher: Matcher, vocabulary: int) -> np.ndarray:
    """Return the mask of the tokens that can come next, shape (vocabulary,), bool.

    Raises EngineError if there is none, and raises as ``Matcher.allowed``.
    """
    allowed = matcher.allowed()[:vocabulary]
    if not allowed.any():
        raise EngineError("No token can follow in this answer, and the model has no end token.")
    # A model can have more logits than its tokenizer has tokens.
    return np.pad(allowed, (0, vocabulary - len(allowed)))


def bias_of(sampling: SamplingParams, mask: np.ndarray | None, vocabulary: int) -> torch.Tensor:
    """Return what is added to the logits, shape (vocabulary,), float32. It is -inf where ``mask`` is False."""
    bias = torch.zeros(vocabulary)
    for token, value in sampling.logit_bias:
        bias[token] += value
    return bias if mask is None else bias.masked_fill_(~torch.from_numpy(mask), -torch.inf)


def counts_of(answer: Sequence[int], vocabulary: int) -> torch.Tensor:
    """Return how often each token is in the answer, shape (vocabulary,), float32."""
    return torch.bincount(torch.tensor(answer, dtype=torch.int64), minlength=vocabulary).float()


class LogitsProcessor:
    """The changes of one request, with their state."""

    def __init__(self, sampling: SamplingParams, matcher: Matcher | None, device: torch.device) -> None:
        self._sampling = sampling
        self._matcher = matcher
        self._bias: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None
        self._penalties = torch.tensor([[sampling.frequency_penalty], [sampling.presence_penalty]], device=device)
        self._counting = bool(self._penalties.any())

    def before(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply mask and bias to ``logits`` of shape (1, V)."""
        vocabulary = logits.shape[1]
        if self._bias is None:
            check_bias(self._sampling, vocabulary)
            self._bias = bias_of(self._sampling, None, vocabulary).to(logits.device)
        if self._sampling.logit_bias:
            logits = logits + self._bias
        if self._matcher is None:
            return logits
        mask = torch.from_numpy(allowed_mask(self._matcher, vocabulary)).to(logits.device)
        return logits.masked_fill(~mask, -torch.inf)

    def after(self, logits: torch.Tensor) -> torch.Tensor:
        """Subtract the penalties for the answer so far from ``logits`` of shape (1, V)."""
        if not self._counting:
            return logits
        if self._counts is None:
            self._counts = torch.zeros_like(logits)
        return apply_penalties(logits, self._counts, *self._penalties)

    def accept(self, token_id: int) -> None:
        """Append a token to the answer."""
        if self._counts is not None:
            self._counts[0, token_id] += 1
        if self._matcher is not None:
            self._matcher.accept(token_id)


def pack(mask: np.ndarray) -> bytes:
    """Pack a bool mask into bits."""
    return np.packbits(mask).tobytes()


def unpack(mask: bytes, vocabulary: int) -> np.ndarray:
    """Return the bool mask from the result of ``pack``."""
    return np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=vocabulary).astype(bool)


class ProcessorTables:
    """The changes of all requests of a batch: one line for each slot, and one more that changes nothing.

    The tables are allocated for the first request that needs them. They take 8 bytes for each slot and token. CUDA
    graphs can be captured after that.
    """

    def __init__(self, slots: int, vocabulary: int, device: torch.device) -> None:
        self._shape = (slots + 1, vocabulary)
        self._device = device
        self._bias: torch.Tensor | None = None
        self._counts = torch.zeros(0, device=device)

    def write(self, slot: int, sampling: SamplingParams, mask: bytes | None, answer: Sequence[int]) -> None:
        """Set the line of a request with ``answer`` so far. ``mask`` is a result of ``pack``."""
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
        """Apply all changes to ``logits`` of shape (B, V).

        ``line``: (B,) int64, the lines in the tables. ``seen``: (B, V) bool. ``penalty``, ``frequency``, ``presence``:
        (B,).
        """
        assert self._bias is not None
        logits = penalise(logits + self._bias[line], seen, penalty)
        return apply_penalties(logits, self._counts[line], frequency, presence)

    def count(self, line: torch.Tensor, choice: torch.Tensor) -> None:
        """Count the chosen tokens, shape (B,)."""
        indices = line * self._shape[1] + choice
        self._counts.view(-1).scatter_add_(0, indices, torch.ones_like(indices, dtype=torch.float32))
