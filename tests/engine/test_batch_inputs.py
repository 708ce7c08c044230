"""Inputs of a step, prepared in less time: they are those of transformers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.generation.continuous_batching.cache_allocators.full_attention import FullAttentionCacheAllocator
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingAsyncIOs

from granite_demo.engine.batch_inputs import Blocks, Inputs, lighten

Positions = dict[str, int]


def inputs(before: Positions, now: Positions, current: int) -> Inputs:
    """Of two steps that gave tokens to the requests at these positions."""
    made = Inputs.__new__(Inputs)
    host: list[Any] = [
        SimpleNamespace(host_io=SimpleNamespace(req_id_to_new_token_position=at)) for at in (now, before)
    ]
    made.io_pairs = host if current == 0 else host[::-1]
    made.current_pair = current
    made.max_batch_tokens = 12
    return made


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, {}),
        ({"a": 0, "b": 1}, {"a": 0, "b": 1}),
        ({"a": 0, "b": 1, "c": 2}, {"c": 0, "a": 1}),
        ({"a": 0}, {"b": 0, "a": 11}),
        ({"a": 0}, {"b": 5}),
    ],
)
def test_the_tokens_carried_over_are_those_of_transformers(before: Positions, now: Positions, current: int) -> None:
    made = inputs(before, now, current)
    expected = ContinuousBatchingAsyncIOs.infer_carry_over_ids(made)
    carried = made.infer_carry_over_ids()
    assert carried.dtype == expected.dtype
    assert carried.tolist() == expected.tolist()


@pytest.mark.parametrize("stride", [256, 1024])
def test_a_line_of_the_block_table_is_that_of_transformers(stride: int) -> None:
    blocks = Blocks.__new__(Blocks)
    blocks.block_table = {"a": [7, 3, 12]}
    blocks.tokens_per_page, blocks.block_physical_stride = 256, stride
    expected, filled = torch.full((2, 4, 6), -1, dtype=torch.int32), torch.full((2, 4, 6), -1, dtype=torch.int32)
    FullAttentionCacheAllocator.fill_block_table(blocks, "a", 600, 1, expected[1, 2])
    blocks.fill_block_table("a", 600, 1, filled[1, 2])
    assert filled.tolist() == expected.tolist()
    assert filled[1, 2].tolist() == [block * stride // 256 for block in (7, 3, 12)] + [-1] * 3


def processor(outputs: Any) -> Any:
    allocator = FullAttentionCacheAllocator.__new__(FullAttentionCacheAllocator)
    return SimpleNamespace(inputs_and_outputs=outputs, cache=SimpleNamespace(cache_allocators={"full": allocator}))


def test_a_processor_on_a_gpu_takes_them() -> None:
    made = processor(ContinuousBatchingAsyncIOs.__new__(ContinuousBatchingAsyncIOs))
    lighten(made)
    assert type(made.inputs_and_outputs) is Inputs
    assert type(made.cache.cache_allocators["full"]) is Blocks


def test_a_processor_whose_inputs_are_on_the_device_stays_as_it_is() -> None:
    made = processor(object())
    lighten(made)
    assert type(made.cache.cache_allocators["full"]) is FullAttentionCacheAllocator
