"""The sampler of one request, for engines that compute requests one at a time."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from granite_demo.engine.sampling.cpu import choose_one
from granite_demo.engine.sampling.dispatch import chooser, cutter
from granite_demo.engine.sampling.logits_processors import LogitsProcessor
from granite_demo.engine.sampling.logprobs import logprob_rows, token_from
from granite_demo.engine.sampling.reference import Rows, choose, not_a_number, parameters, penalise, penalise_and_choose
from granite_demo.outputs.structured_output import Matcher
from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import SamplingParams


class Sampler:
    """Chooses the tokens of one request, and keeps the state for its penalties and its constraint."""

    def __init__(
        self,
        sampling: SamplingParams,
        prompt_ids: Sequence[int],
        device: torch.device,
        matcher: Matcher | None = None,
    ) -> None:
        self._sampling = sampling
        self._greedy = sampling.temperature == 0
        self._penalised = sampling.repetition_penalty != 1
        self._on_cpu = device.type == "cpu"
        self._chooser, self._cut_off = chooser(device), cutter(device)
        self._prompt = torch.tensor(list(prompt_ids), dtype=torch.int64, device=device)
        self._seen: torch.Tensor | None = None
        self._processor = LogitsProcessor(sampling, matcher, device) if sampling.adjusts or matcher else None
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)
        numbers = torch.tensor(parameters(sampling), device=device)
        temperature, top_k, top_p, min_p, penalty = numbers[:, None]
        seed = torch.tensor([sampling.seed or 0], device=device)
        self._rows = Rows(temperature, top_k, top_p, min_p, penalty, seed, self._slot.clone())
        self._unpenalised = replace(self._rows, penalty=torch.ones_like(penalty))
        self._cuts: list[float] = numbers[:4].tolist()

    def __call__(self, logits: torch.Tensor) -> Token:
        """Choose the next token from ``logits`` of shape (1, vocabulary).

        Raises EngineError for NaN, InvalidRequestError for a bias on a token that does not exist, and the errors of the
        matcher.
        """
        # float32 as in ``generate``: bfloat16 is not precise enough for a softmax over a large vocabulary.
        logits = logits.float()
        if self._seen is None:
            self._seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
            if self._penalised:
                self._seen[0, self._prompt] = True
        wanted = self._sampling.logprobs
        scores = self._penalise(logits)
        choice = self._choose(scores)
        # The second value is NaN if any logit is; the CPU then chooses that logit. All values are in one transfer from
        # the GPU, without float64, which Apple GPUs do not have. A token id is exact in float32.
        numbers = [choice.float(), scores[0, choice] if self._on_cpu else logits.sum()[None]]
        if wanted is not None:
            own = torch.log_softmax(logits, dim=-1)
            numbers.append(logprob_rows(own, scores, self._rows, choice, self._cut_off, wanted)[0])
        token, total, *reported = torch.cat(numbers).tolist()
        if total != total:
            raise not_a_number()
        if self._penalised:
            self._seen[0, choice] = True
        self._rows.position.add_(1)
        if self._processor:
            self._processor.accept(int(token))
        return Token(int(token)) if wanted is None else token_from(int(token), reported, wanted)

    def _penalise(self, logits: torch.Tensor) -> torch.Tensor:
        assert self._seen is not None
        scores = self._processor.before(logits) if self._processor else logits
        if self._penalised:
            scores = penalise(scores, self._seen, self._rows.penalty)
        return self._processor.after(scores) if self._processor else scores

    def _choose(self, scores: torch.Tensor) -> torch.Tensor:
        assert self._seen is not None
        if self._on_cpu:
            key = {"seed": self._sampling.seed or 0, "position": int(self._rows.position)}
            return torch.tensor([choose_one(scores[0].numpy(), *self._cuts, **key)])
        if self._greedy:
            return scores.argmax(dim=-1)
        if self._chooser is penalise_and_choose:
            # Outside a CUDA graph, unused searches can be omitted.
            return choose(scores, self._rows, cut_k=self._sampling.top_k > 0, cut_p=self._sampling.top_p < 1)
        return self._chooser(scores.clone(), self._unpenalised, self._seen, self._slot)
