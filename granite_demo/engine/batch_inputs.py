"""What a step's inputs cost the processor, in continuous batching (transformers 5.23): less than there.

While a step runs on the GPU the next one is prepared here, in time that the event loop wants, too. Tensors on the host
are written as arrays: each operation of torch takes microseconds, and lets the other threads of Python go first.
"""

from typing import Any

import torch
from transformers.generation.continuous_batching.cache_allocators.full_attention import FullAttentionCacheAllocator
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingAsyncIOs


class Inputs(ContinuousBatchingAsyncIOs):
    """The inputs of two steps, one of which is prepared while the other runs."""

    def infer_carry_over_ids(self) -> torch.Tensor:
        """See the base class, which makes a list of as many as a prefill may have. (max_batch_tokens,) int32."""
        now, before = (self.io_pairs[pair].host_io for pair in (self.current_pair, 1 - self.current_pair))
        carried = torch.full((self.max_batch_tokens,), -1, dtype=torch.int32)
        places = carried.numpy()
        for index, request_id in enumerate(before.req_id_to_new_token_position):
            place = now.req_id_to_new_token_position.get(request_id)
            if place is not None:
                places[place] = index
        return carried


class Blocks(FullAttentionCacheAllocator):
    """The blocks of the cache that each request has."""

    def fill_block_table(self, request_id: str, past_length: int, query_length: int, block_table: torch.Tensor) -> None:
        """See the base class. ``block_table`` is the request's line of it, on the host."""
        blocks = self.block_table[request_id]
        stride = self.block_physical_stride // self.tokens_per_page
        block_table.numpy()[: len(blocks)] = blocks if stride == 1 else [block * stride for block in blocks]


def lighten(processor: Any) -> None:
    """Have a new processor of batches prepare them so, where its inputs are made on the host."""
    outputs = processor.inputs_and_outputs
    if type(outputs) is not ContinuousBatchingAsyncIOs:
        return
    outputs.__class__ = Inputs
    for allocator in processor.cache.cache_allocators.values():
        if type(allocator) is FullAttentionCacheAllocator:
            allocator.__class__ = Blocks
