"""Sampling in continuous batching: one object replaces the list of logits processors of transformers.

Continuous batching has one seed for all requests and no repetition penalty. Therefore it runs greedily, and this object
makes the choice: it returns scores whose argmax is the chosen token. CUDA graphs capture ``__call__``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from granite_demo.engine.sampling.dispatch import chooser, cutter
from granite_demo.engine.sampling.logits_processors import ProcessorTables
from granite_demo.engine.sampling.logprobs import logprob_rows, row_width, token_from
from granite_demo.engine.sampling.reference import Rows, parameters, penalise
from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import MAX_ALTERNATIVES, SamplingParams

STEPS_KEPT = 4
"""The number of steps whose log probabilities are kept. A token is delivered at most two steps after its choice."""
LogProbs = torch.Tensor
"""(steps, slots, row width) float32: the rows of ``logprob_rows``."""
_FLOATS = 7
_INTEGERS = 5


@dataclass(frozen=True, slots=True)
class Row:
    """The sampling data of one request. It is sent to every process of a tensor-parallel group."""

    sampling: SamplingParams
    slot: int
    """The line of the request in the tables on the device."""
    prompt_length: int
    mask: bytes | None = None
    """For a submission of one token: the mask of ``logits_processors.pack``."""

    @property
    def adjusts(self) -> bool:
        """Whether the request needs the tables of ``logits_processors``."""
        return self.sampling.adjusts or self.mask is not None


class BatchSampler:
    """A replacement for ``ContinuousBatchingLogitsProcessorList`` (transformers 5.23, cb_logits_processors.py)."""

    do_processing = True
    tensors_required = _FLOATS + _INTEGERS

    def __init__(self, vocabulary: int, slots: int, device: torch.device) -> None:
        self.with_logprobs = False
        """Whether the next step reports log probabilities. Such steps have their own graphs."""
        self.adjusting = False
        """Whether the next step uses the tables of ``logits_processors``. Such steps have their own graphs."""
        self._choose, self._cut_off = chooser(device), cutter(device)
        self._tables = ProcessorTables(slots, vocabulary, device)
        self._slots = slots
        self._owners: dict[int, str] = {}
        self._padding = Row(SamplingParams(), slots, 0)
        self._blank = self._pack([self._padding] * slots)
        self._packed: list[Row] = []
        self._columns = self._blank.clone()
        # The padding rows of a batch write to the additional line.
        self._seen = torch.zeros((slots + 1, vocabulary), dtype=torch.bool, device=device)
        self._report = torch.zeros((STEPS_KEPT, slots + 1, row_width(MAX_ALTERNATIVES)), device=device)
        self.stream: Any = None
        """The CUDA stream of the forward passes, after the loop has created it."""

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Check nothing, because all requests are from the engine."""

    def fill_defaults(self, storage: torch.Tensor) -> None:
        """Make each padding row greedy. ``storage``: (tensors_required, 1) int32."""
        storage.copy_(self._pack([self._padding]).to(storage.device))

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        """Write the columns of the requests that get a token into ``arg_storage``, (tensors_required, n) int32."""
        states = [request.state for request in requests_in_batch if request.has_new_token]
        rows: list[Row] = [state.logit_processor_kwargs.get("row", self._padding) for state in states]
        self.with_logprobs = any(row.sampling.logprobs is not None for row in rows)
        self.adjusting = any(row.adjusts for row in rows)
        for state, row in zip(states, rows, strict=True):
            remembers = row.sampling.repetition_penalty != 1 or row.adjusts
            if remembers and self._owners.get(row.slot) != state.request_id:
                self._mark(row, state.request_id, state.initial_tokens + state.generated_tokens)
        # The offset includes the step that is prepared here, and one that can still be in flight.
        positions = [state.position_offset - row.prompt_length for state, row in zip(states, rows, strict=True)]
        if rows != self._packed:  # they are usually those of the previous step
            # Padding columns must not have a slot of an earlier batch.
            self._packed, self._columns = rows, self._blank.clone()
            if rows:
                self._columns[:, : len(rows)] = self._pack(rows)
        self._columns.numpy()[-1, : len(rows)] = positions
        if arg_storage.device.type == "cpu":
            arg_storage.numpy()[:, : self._slots] = self._columns.numpy()  # numpy, as in step_inputs
        else:
            arg_storage[:, : self._slots] = self._columns.to(arg_storage.device)
        return arg_storage

    def _pack(self, rows: list[Row]) -> torch.Tensor:
        """Return the columns of ``rows``. The last line is for the positions."""
        samplings = [row.sampling for row in rows]
        floats = [(*parameters(s), s.frequency_penalty, s.presence_penalty) for s in samplings]
        seeds = torch.tensor([s.seed or 0 for s in samplings], dtype=torch.int64).view(torch.int32).view(-1, 2)
        # Rows without changes use the last line of the tables, whose bias is 0.
        lines = [row.slot if row.adjusts else self._slots for row in rows]
        integers = torch.tensor([[line, row.slot, 0] for line, row in zip(lines, rows, strict=True)])
        return torch.cat((torch.tensor(floats).view(torch.int32), seeds, integers.int()), dim=1).T.contiguous()

    def _mark(self, row: Row, request_id: str, tokens: list[int]) -> None:
        self._owners[row.slot] = request_id
        # In the order of the forward passes, because one in flight can still write for the previous owner of the slot.
        with torch.cuda.stream(self.stream):
            self._seen[row.slot] = False
            self._seen[row.slot, torch.tensor(tokens, device=self._seen.device)] = True
            if row.adjusts:
                # For the loop, the prompt can contain a part of the answer: see Loop.submit.
                self._tables.write(row.slot, row.sampling, row.mask, tokens[row.prompt_length :])

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiled step must not depend on the requests
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, args: torch.Tensor) -> torch.Tensor:
        """Return scores whose argmax is the choice, shape (n, V). Rows with NaN logits stay NaN.

        ``args``: (tensors_required, n) int32.
        """
        temperature, top_k, top_p, min_p, penalty, *penalties = args[:_FLOATS].contiguous().view(torch.float32)
        low, high, line, slot, position = (row.long() for row in args[_FLOATS:])
        seed = (high << 32) | (low & 0xFFFFFFFF)
        rows = Rows(temperature, top_k, top_p, min_p, penalty, seed, position)
        # Continuous batching then reports the log probability 0, or NaN if a logit is NaN.
        certain = scores.sum(dim=-1, keepdim=True) * 0
        logprobs = torch.log_softmax(scores, dim=-1) if self.with_logprobs else None
        if self.adjusting:
            scores = self._tables.adjust(scores, line, self._seen[slot], penalty, *penalties)
            rows = replace(rows, penalty=torch.ones_like(penalty))
        penalised = None if logprobs is None else penalise(scores, self._seen[slot], rows.penalty)
        choice = self._choose(scores, rows, self._seen, slot)  # can overwrite the scores
        self._seen.index_put_((slot, choice), torch.ones_like(slot, dtype=torch.bool))
        if self.adjusting:
            self._tables.count(line, choice)
        if logprobs is not None and penalised is not None:
            values = logprob_rows(logprobs, penalised, rows, choice, self._cut_off, MAX_ALTERNATIVES)
            self._report.index_put_((position % STEPS_KEPT, slot), values)
        return scores.fill_(-torch.inf).scatter_(1, choice[:, None], certain)

    def read(self) -> LogProbs:
        """Return the log probabilities of the last steps, in one transfer. Called on the thread of the loop."""
        return self._report.cpu()


def token_of(token_id: int, row: Row, position: int, logprobs: LogProbs | None) -> Token:
    """Return the token with the log probabilities that ``row`` requests. ``position`` is its index in the answer."""
    if row.sampling.logprobs is None or logprobs is None:
        return Token(token_id)
    return token_from(token_id, logprobs[position % STEPS_KEPT, row.slot].tolist(), row.sampling.logprobs)
