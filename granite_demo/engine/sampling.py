"""How the next token is chosen: transformers' logits processors in the order of its ``generate``, then one draw."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from granite_demo.errors import EngineError
from granite_demo.types import SamplingParams


class Sampler:
    """Chooses the tokens of one request. The same seed, prompt and parameters choose the same tokens."""

    def __init__(self, sampling: SamplingParams, prompt_ids: Sequence[int], device: torch.device) -> None:
        self._greedy = sampling.temperature == 0.0
        self._ids: Any = torch.tensor([list(prompt_ids)], device=device)
        self._needs_ids = sampling.repetition_penalty != 1.0
        self._processors = LogitsProcessorList()
        if self._needs_ids:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if not self._greedy:
            self._processors.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1.0:
                self._processors.append(TopPLogitsWarper(sampling.top_p))
            self._generator = torch.Generator(device)
            self._generator.manual_seed(sampling.seed or 0)

    def __call__(self, logits: torch.Tensor) -> int:
        """The next token from ``logits`` of shape (1, vocabulary). Raises EngineError on NaN."""
        # float32 as in generate: bf16 has too few digits for a softmax over a large vocabulary.
        scores: torch.Tensor = self._processors(self._ids, cast(Any, logits.float()))
        if self._greedy:
            choice = scores.argmax(dim=-1)
            valid = scores[0, choice[0]]
        else:
            probabilities = torch.softmax(scores, dim=-1)
            valid = probabilities.sum()
            # NaN is replaced for the draw and found below: one wait for the GPU a token, not two.
            choice = torch.multinomial(torch.nan_to_num(probabilities, nan=1.0), 1, generator=self._generator)[:, 0]
        if not torch.isfinite(valid):
            raise EngineError("The model's output is not a number. Load it in another precision, such as bfloat16.")
        if self._needs_ids:
            self._ids = torch.cat([self._ids, choice[None]], dim=1)
        return int(choice)
