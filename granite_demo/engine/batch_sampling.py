"""Sampling inside transformers' continuous batching: one object in the place of its list of logits processors.

Continuous batching knows one seed for all requests and no repetition penalty. So it runs greedily, and what it takes
the arg-max of are scores in which this object has already chosen. ``__call__`` is captured in CUDA graphs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from granite_demo.engine.sampling import Rows, chooser, parameters
from granite_demo.types import MAX_ALTERNATIVES, SamplingParams, Token

STEPS_KEPT = 4
"""Steps whose log probabilities stay readable: a token is delivered at most two steps after it was chosen."""
LogProbs = tuple[Any, Any, Any]
"""Nested lists by step and slot: the chosen token's log probability, the likeliest ones, and their ids."""
_FLOATS = 5
_INTEGERS = 4


@dataclass(frozen=True, slots=True)
class Row:
    """What sampling has to know of one request. Travels with it to every process of a tensor-parallel group."""

    sampling: SamplingParams
    slot: int
    """The request's own line in the tables on the device."""
    prompt_length: int


class BatchSampler:
    """Takes the place of ``ContinuousBatchingLogitsProcessorList`` (transformers 5.23, cb_logits_processors.py)."""

    do_processing = True
    tensors_required = _FLOATS + _INTEGERS

    def __init__(self, vocabulary: int, slots: int, device: torch.device) -> None:
        self.with_logprobs = False
        """Whether the step that is being prepared reports log probabilities: these have graphs of their own."""
        self._choose = chooser(device)
        self._slots = slots
        self._owners: dict[int, str] = {}
        self._padding = Row(SamplingParams(), slots, 0)
        self._blank = self._pack([self._padding] * slots, [0] * slots)
        # One line more than requests: rows that only pad a batch write there.
        self._seen = torch.zeros((slots + 1, vocabulary), dtype=torch.bool, device=device)
        self._chosen = torch.zeros((STEPS_KEPT, slots + 1), device=device)
        self._values = torch.zeros((STEPS_KEPT, slots + 1, MAX_ALTERNATIVES), device=device)
        self._ids = torch.zeros((STEPS_KEPT, slots + 1, MAX_ALTERNATIVES), dtype=torch.int64, device=device)
        self.stream: Any = None
        """The CUDA stream of the forward passes, once there is one."""

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Nothing to check: the requests come from our own engine."""

    def fill_defaults(self, storage: torch.Tensor) -> None:
        """Make each padding row greedy. ``storage``: (tensors_required, 1) int32."""
        storage.copy_(self._pack([self._padding], [0]).to(storage.device))

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        """Write the columns of the requests that get a token into ``arg_storage``, (tensors_required, n) int32."""
        states = [request.state for request in requests_in_batch if request.has_new_token]
        rows: list[Row] = [state.logit_processor_kwargs.get("row", self._padding) for state in states]
        self.with_logprobs = any(row.sampling.logprobs is not None for row in rows)
        for state, row in zip(states, rows, strict=True):
            if row.sampling.repetition_penalty != 1 and self._owners.get(row.slot) != state.request_id:
                self._mark(row.slot, state.request_id, state.initial_tokens + state.generated_tokens)
        # The offset counts the step that is being prepared, and so also one that is still in flight.
        positions = [state.position_offset - row.prompt_length for state, row in zip(states, rows, strict=True)]
        # Columns that only pad the batch must not keep a slot from an earlier one.
        columns = self._blank.clone()
        if rows:
            columns[:, : len(rows)] = self._pack(rows, positions)
        arg_storage[:, : self._slots] = columns.to(arg_storage.device)
        return arg_storage

    def _pack(self, rows: list[Row], positions: list[int]) -> torch.Tensor:
        samplings = [row.sampling for row in rows]
        floats = [parameters(sampling) for sampling in samplings]
        seeds = torch.tensor([s.seed or 0 for s in samplings], dtype=torch.int64).view(torch.int32).view(-1, 2)
        integers = torch.tensor([[row.slot, at] for row, at in zip(rows, positions, strict=True)], dtype=torch.int32)
        return torch.cat((torch.tensor(floats).view(torch.int32), seeds, integers), dim=1).T.contiguous()

    def _mark(self, slot: int, request_id: str, tokens: list[int]) -> None:
        self._owners[slot] = request_id
        # In the order of the forward passes: one that is in flight may still write for the slot's previous owner.
        with torch.cuda.stream(self.stream):
            self._seen[slot] = False
            self._seen[slot, torch.tensor(tokens, device=self._seen.device)] = True

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiled step stays the same whoever asks for what
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, args: torch.Tensor) -> torch.Tensor:
        """Scores whose arg-max is the choice, (n, V); NaN where the logits are. ``args``: (tensors_required, n)."""
        temperature, top_k, top_p, min_p, penalty = args[:_FLOATS].contiguous().view(torch.float32)
        low, high, slot, position = (row.long() for row in args[_FLOATS:])
        seed = (high << 32) | (low & 0xFFFFFFFF)
        rows = Rows(temperature, top_k, top_p, min_p, penalty, seed, position)
        # The log probability that continuous batching reports is then 0, or NaN where a logit is.
        certain = scores.sum(dim=-1, keepdim=True) * 0
        logprobs = torch.log_softmax(scores, dim=-1) if self.with_logprobs else None
        choice = self._choose(scores, rows, self._seen, slot)
        self._seen.index_put_((slot, choice), torch.ones_like(slot, dtype=torch.bool))
        if logprobs is not None:
            at = (position % STEPS_KEPT, slot)
            values, ids = logprobs.topk(MAX_ALTERNATIVES, dim=-1)
            self._chosen.index_put_(at, logprobs.gather(1, choice[:, None])[:, 0])
            self._values.index_put_(at, values)
            self._ids.index_put_(at, ids)
        return scores.fill_(-torch.inf).scatter_(1, choice[:, None], certain)

    def read(self) -> LogProbs:
        """The log probabilities of the last steps, in one transfer. Called from the loop's thread."""
        return self._chosen.tolist(), self._values.tolist(), self._ids.tolist()


def token_of(token_id: int, row: Row, position: int, logprobs: LogProbs | None) -> Token:
    """The token with what its request wants to know of it. ``position``: its place in the answer, from 0."""
    if row.sampling.logprobs is None or logprobs is None:
        return Token(token_id)
    chosen, values, ids = (table[position % STEPS_KEPT][row.slot] for table in logprobs)
    return Token(token_id, chosen, tuple(zip(ids, values, strict=True))[: row.sampling.logprobs])
