"""CUDA graphs of continuous batching's steps: which are captured in warm-up, and how (transformers 5.23).

A prefill is padded to a few sizes, each of which is a graph: ``QUERY_GRAIN`` tokens, ``KEY_GRAIN`` cached tokens, and
the longest request's length to a power of two. Decoding is padded to a power of two of requests.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingAsyncIOs
from transformers.generation.continuous_batching.utils import (
    CudaGraphBuffer,
    accelerator_graph_capture_context,
    create_accelerator_graph,
    stream_context,
)

from granite_demo.engine.batching.sampler import BatchSampler

QUERY_GRAIN = 512
"""Tokens that a prefill is padded to a multiple of."""
KEY_GRAIN = 16384
"""Cached tokens that a prefill reads are padded to a multiple of this."""
Step = tuple[int, int | None]
"""(tokens, cached tokens) of a prefill; (requests, None) of decoding"""


class Graphs(CudaGraphBuffer):
    """Captured steps, by shape and by what they report."""

    def __init__(self, sampler: BatchSampler) -> None:
        super().__init__()
        self._sampler = sampler

    def get_graph(self, key: tuple[int, ...]) -> Any:
        """See the base class."""
        return super().get_graph((*key, self._sampler.with_logprobs, self._sampler.adjusting))

    def __len__(self) -> int:
        return len(self._storage)

    def set_graph(self, key: tuple[int, ...], graph: Any) -> None:
        """See the base class."""
        super().set_graph((*key, self._sampler.with_logprobs, self._sampler.adjusting), graph)


def device_ios(outputs: Any) -> list[Any]:
    """The inputs and outputs on the device: with asynchronous batching two sets, each with graphs of its own."""
    if isinstance(outputs, ContinuousBatchingAsyncIOs):
        return [pair.device_io for pair in outputs.io_pairs]
    return [outputs]


def usual_steps(prefill: int, requests: int, context: int) -> list[Step]:
    """What users ask for most: first turns, follow-ups on up to ``KEY_GRAIN`` tokens, any number of requests."""
    # The largest first: the others then fit into its memory.
    steps: list[Step] = [(prefill, max(0, min(KEY_GRAIN, context) - prefill)), (prefill, 0)]
    # First turns of any length up to a chunk: each is padded to one of these.
    steps += [(size, 0) for size in range((prefill - 1) // QUERY_GRAIN * QUERY_GRAIN, 0, -QUERY_GRAIN)]
    depth = 2048
    while depth <= min(context, KEY_GRAIN):
        # A short follow-up, and a chunk of a long first turn.
        steps += [(size, depth - size) for size in (QUERY_GRAIN, prefill) if size < depth]
        depth *= 2
    size = 1
    while size < requests:
        steps.append((size, None))
        size *= 2
    steps.append((requests, None))
    return list(dict.fromkeys(steps))  # in a short context the first two are the same


def capture(manager: Any, steps: list[Step], quick: bool) -> None:
    """Run and capture each of the ``steps``; ``quick``: run only the first prefill and the first decoding.

    What these set up (libraries, workspaces, compiled kernels) mostly serves the others, and running them takes as
    long as capturing them. A step that cannot be captured is missing afterwards.
    """
    processor = manager.batch_processor
    runner, outputs = processor.model_runner, processor.inputs_and_outputs
    thorough = runner._capture_graph
    seen: set[bool] = set()
    with torch.no_grad():
        for _ in device_ios(outputs):
            for size, cached in steps:
                kind = cached is None
                if quick and kind in seen:
                    runner._capture_graph = partial(_capture_only, runner)
                runner.run_one_warmup(model=manager.model, num_q_tokens=size, max_kv_read=cached)
                runner._capture_graph = thorough
                seen.add(kind)
            if isinstance(outputs, ContinuousBatchingAsyncIOs):
                outputs.swap_io_pairs()
    processor.cache.reset()


def _capture_only(runner: Any, forward: Callable[..., None], stream: Any, *args: Any) -> None:
    """``ModelRunner._capture_graph`` without running the step first."""
    graph = create_accelerator_graph()
    with accelerator_graph_capture_context(graph, stream=stream, pool=runner.graph_pool_id):
        forward(*args)
    with stream_context(stream):
        graph.replay()
    # The next step's inputs are copied to the same place at once.
    stream.synchronize()
    runner.inputs_and_outputs.set_graph(graph)
