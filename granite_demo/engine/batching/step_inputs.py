"""Prepares the inputs of a step of continuous batching without torch (transformers 5.23).

While a step runs on the GPU, the model's thread prepares the next one. Each torch operation releases the GIL, and the
threads of a busy page or API then run first. Here, numpy writes the host tensors without releasing the GIL. On an H100
with 16 visitors of the page and ``loop.TURN_SECONDS``, the GPU waited in 3 of 100 steps instead of 10.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from transformers.generation.continuous_batching.cache_allocators import FULL_ATTENTION
from transformers.generation.continuous_batching.input_outputs import (
    ContinuousBatchingAsyncIOs,
    ContinuousBatchingIOs,
)
from transformers.generation.continuous_batching.requests import TMP_TOKEN_ID


class HostInputs(ContinuousBatchingIOs):
    """The host inputs of one step, for models with full attention in all layers."""

    def prepare_batch_tensors(
        self,
        requests_in_batch: list[Any],
        logits_processors: Any,
        use_decode_fast_path: bool,
        num_q_tokens: int,
        max_kv_read: int,
        use_padding: bool,
    ) -> None:
        """See the base class, which prepares all steps except padded decode steps."""
        if not (use_decode_fast_path and use_padding):
            return super().prepare_batch_tensors(
                requests_in_batch, logits_processors, use_decode_fast_path, num_q_tokens, max_kv_read, use_padding
            )
        count, padded = len(requests_in_batch), min(num_q_tokens, len(self.logits_indices))
        self.use_block_table, self.num_q_tokens, self.max_kv_read = True, num_q_tokens, 0
        self.num_request_in_batch = self.total_seqlen_q = count
        self.true_read_sizes, self.true_write_sizes = [0], [0]
        self.requests_in_batch, self.req_id_to_new_token_position = list(requests_in_batch), {}
        states = [request.state for request in requests_in_batch]
        tokens = [state.tokens_to_process[0] for state in states]
        positions = [state.position_offset for state in states]
        lengths = [position + 1 for position in positions]
        self._clear(num_q_tokens, padded)
        self._write_blocks(states)
        chosen = []
        for index, request in enumerate(requests_in_batch):
            request.state.position_offset += 1
            if request.has_new_token:
                chosen.append(index)
                request.state.tokens_to_process = [TMP_TOKEN_ID]
                self.req_id_to_new_token_position[request.state.request_id] = index
        logits_processors.prepare_tensor_args(
            requests_in_batch=requests_in_batch, arg_storage=self._bulk_input_tensor[self.static_inputs :]
        )
        read = [0, *accumulate(lengths)]
        self.max_length_q = 1
        self.max_length_k[FULL_ATTENTION] = max(lengths)
        self.total_seqlen_k[FULL_ATTENTION] = read[-1]
        # Padding requests have no tokens.
        self._write(self.input_ids, tokens)
        self._write(self.position_ids, positions)
        self._write(self.cumulative_seqlens_q, [*range(count + 1), *[count] * (padded - count)])
        self._write(self.logits_indices, chosen)
        self._write(self.cumulative_seqlens_k[FULL_ATTENTION], [*read, *[read[-1]] * (padded - count)])

    def carry_over(self, before: "HostInputs") -> None:
        """Set which tokens of the step ``before``, which are not known yet, are inputs of this step."""
        sources = self.carry_over_ids.numpy()
        sources[:] = -1
        for source, request_id in enumerate(before.req_id_to_new_token_position):
            target = self.req_id_to_new_token_position.get(request_id)
            if target is not None:
                sources[target] = source

    def _clear(self, tokens: int, requests: int) -> None:
        self._bulk_input_tensor.numpy()[: self.static_inputs, : tokens + 1] = 0
        self.output_ids.numpy()[:, :requests] = 0
        self.block_table.numpy()[:, :requests] = -1

    def _write_blocks(self, states: Sequence[Any]) -> None:
        allocator, table = self.cache.cache_allocators[FULL_ATTENTION], self.block_table[0].numpy()
        stride = allocator.block_physical_stride // allocator.tokens_per_page
        for line, state in enumerate(states):
            blocks = allocator.block_table[state.request_id]
            table[line, : len(blocks)] = blocks if stride == 1 else [block * stride for block in blocks]

    @staticmethod
    def _write(tensor: torch.Tensor, values: list[int]) -> None:
        tensor.numpy()[: len(values)] = values


class Inputs(ContinuousBatchingAsyncIOs):
    """The inputs of two steps. One is prepared while the other runs."""

    def prepare_batch_tensors(self, *args: Any, **kwargs: Any) -> None:
        """See the base class."""
        now: Any = self.io_pairs[self.current_pair].host_io
        before: Any = self.io_pairs[1 - self.current_pair].host_io
        now.prepare_batch_tensors(*args, **kwargs)
        now.carry_over(before)


def use_host_inputs(processor: Any) -> None:
    """Make a new batch processor prepare its inputs with ``HostInputs``, if it supports that."""
    outputs = processor.inputs_and_outputs
    if type(outputs) is not ContinuousBatchingAsyncIOs or list(processor.cache.cache_allocators) != [FULL_ATTENTION]:
        return
    outputs.__class__ = Inputs
    for pair in outputs.io_pairs:
        pair.host_io.__class__ = HostInputs
