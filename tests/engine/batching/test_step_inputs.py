"""The inputs of a step that are prepared without torch equal those of transformers."""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache_allocators import FULL_ATTENTION
from transformers.generation.continuous_batching.cache_allocators.full_attention import FullAttentionCacheAllocator
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingAsyncIOs, ContinuousBatchingIOs
from transformers.generation.continuous_batching.requests import TMP_TOKEN_ID, FutureRequestState, RequestState

from granite_demo.engine.batching.sampler import BatchSampler, Row
from granite_demo.engine.batching.step_inputs import HostInputs, Inputs, use_host_inputs
from granite_demo.types.sampling_params import SamplingParams
from tests.engine.running import tiny_model

REQUESTS, BLOCKS, PAGE, PREFILL = 8, 10, 256, 64
SHOWN = (
    "use_block_table",
    "num_q_tokens",
    "max_kv_read",
    "num_request_in_batch",
    "true_read_sizes",
    "true_write_sizes",
    "req_id_to_new_token_position",
    "total_seqlen_q",
    "total_seqlen_k",
    "max_length_q",
    "max_length_k",
)


def cache(stride: int = PAGE) -> Any:
    """The parts of a cache that the inputs read."""
    allocator: Any = SimpleNamespace(
        block_table={}, tokens_per_page=PAGE, block_physical_stride=stride, write_trash_index=1, read_trash_index=1
    )
    allocator.get_seqlen_k = lambda past, query: past + query

    def fill(request_id: str, past_length: int, query_length: int, block_table: torch.Tensor) -> None:
        FullAttentionCacheAllocator.fill_block_table(allocator, request_id, past_length, query_length, block_table[0])

    return SimpleNamespace(
        cache_allocators={FULL_ATTENTION: allocator},
        fill_block_table=fill,
        extend_read_and_write_indices=lambda *args: args[-1][0].append(3),
        max_batch_tokens=PREFILL,
        max_tokens_read=128,
        max_blocks_per_request=BLOCKS,
    )


def inputs(kind: type[ContinuousBatchingIOs], stride: int) -> Any:
    config = tiny_model().model.config
    config._attn_implementation = "flash_attention_2"  # it needs no masks
    batching = ContinuousBatchingConfig(max_requests_per_batch=REQUESTS, return_logprobs=True)
    device = torch.device("cpu")
    sampler: Any = BatchSampler(50, REQUESTS, device)
    made = kind(cache(stride), config, batching, device, torch.float32, sampler)
    made._bulk_input_tensor.fill_(7)
    made.block_table.fill_(7)
    return made


def requests(names: str, held: str = "") -> list[FutureRequestState]:
    """Return a request for each name. Those in ``held`` get no token from the step."""
    found = []
    for name in names:
        number = ord(name) - ord("a")
        row = Row(SamplingParams(seed=number, max_tokens=9), number, 5)
        state = RequestState(name, [1] * 5, logit_processor_kwargs={"row": row})
        state.position_offset, state.tokens_to_process = 100 + 300 * number, [20 + number]
        found.append(FutureRequestState(state, name not in held, {}, 1))
    return found


def prepare(made: Any, asked: list[FutureRequestState], sampler: BatchSampler, padded: int, fast: bool = True) -> None:
    for request in asked:
        number = ord(request.state.request_id) - ord("a")
        blocks = list(range(number, number + 1 + request.state.position_offset // PAGE))
        made.cache.cache_allocators[FULL_ATTENTION].block_table[request.state.request_id] = blocks
    made.prepare_batch_tensors(asked, sampler, fast, padded, 0, True)


@pytest.mark.parametrize("stride", [PAGE, 4 * PAGE])
def test_the_inputs_equal_those_of_transformers(stride: int) -> None:
    theirs, ours = inputs(ContinuousBatchingIOs, stride), inputs(HostInputs, stride)
    samplers = [BatchSampler(50, REQUESTS, torch.device("cpu")) for _ in range(2)]
    # A full batch, a smaller one, one with the last but one token of a prompt, others, and a prefill in between.
    steps = [("abcdefgh", "", 8, True), ("bdf", "", 4, True), ("bdf", "d", 4, True), ("a", "", 1, True)]
    for names, held, padded, fast in (*steps, ("abc", "", 64, False), ("hgc", "", 4, True)):
        asked = requests(names, held)
        copied = deepcopy(asked)
        prepare(theirs, asked, samplers[0], padded, fast)
        prepare(ours, copied, samplers[1], padded, fast)
        assert torch.equal(ours._bulk_input_tensor, theirs._bulk_input_tensor), names
        assert torch.equal(ours.block_table, theirs.block_table), names
        assert torch.equal(ours.output_ids, theirs.output_ids), names
        for name in SHOWN:
            assert getattr(ours, name) == getattr(theirs, name), name
        assert [request.state.position_offset for request in copied] == [one.state.position_offset for one in asked]
        assert [request.state.tokens_to_process for request in copied] == [one.state.tokens_to_process for one in asked]
        assert ours.requests_in_batch == copied
    assert asked[0].state.tokens_to_process == [TMP_TOKEN_ID]


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
def test_the_tokens_carried_over_are_those_of_transformers(
    before: dict[str, int], now: dict[str, int], current: int
) -> None:
    hosts = [HostInputs.__new__(HostInputs) for _ in range(2)]
    for host, positions in zip(hosts, (now, before), strict=True):
        host.req_id_to_new_token_position = positions
        host.carry_over_ids = torch.full((PREFILL,), 7, dtype=torch.int32)
    pairs: list[Any] = [SimpleNamespace(host_io=host) for host in hosts]
    both = Inputs.__new__(Inputs)
    both.io_pairs = pairs if current == 0 else pairs[::-1]
    both.current_pair = current
    both.max_batch_tokens = PREFILL
    hosts[0].carry_over(hosts[1])
    assert torch.equal(hosts[0].carry_over_ids, both.infer_carry_over_ids())


def processor(outputs: Any, kinds: list[str]) -> Any:
    return SimpleNamespace(
        inputs_and_outputs=outputs, cache=SimpleNamespace(cache_allocators={kind: object() for kind in kinds})
    )


def two_steps() -> Any:
    both = ContinuousBatchingAsyncIOs.__new__(ContinuousBatchingAsyncIOs)
    hosts = [ContinuousBatchingIOs.__new__(ContinuousBatchingIOs) for _ in range(2)]
    pairs: list[Any] = [SimpleNamespace(host_io=host) for host in hosts]
    both.io_pairs = pairs
    return both


def test_two_steps_with_full_attention_use_host_inputs() -> None:
    both = two_steps()
    use_host_inputs(processor(both, [FULL_ATTENTION]))
    assert type(both) is Inputs
    assert [type(pair.host_io) for pair in both.io_pairs] == [HostInputs, HostInputs]


def test_inputs_on_the_device_and_other_attention_are_not_changed() -> None:
    alone = ContinuousBatchingIOs.__new__(ContinuousBatchingIOs)
    use_host_inputs(processor(alone, [FULL_ATTENTION]))
    assert type(alone) is ContinuousBatchingIOs
    both = two_steps()
    use_host_inputs(processor(both, [FULL_ATTENTION, "sliding_attention"]))
    assert type(both) is ContinuousBatchingAsyncIOs
