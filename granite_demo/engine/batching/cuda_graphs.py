"""The CUDA graphs of continuous batching (transformers 5.23): which steps are captured during the warm-up, and how.

The tokens of a prefill are padded to a multiple of ``QUERY_GRAIN``, its cached tokens to a multiple of ``KEY_GRAIN``,
and the length of the longest request to a power of two. The requests of a decode step are padded to a power of two.
Each combination is a graph.
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
"""The tokens of a prefill are padded to a multiple of this."""
KEY_GRAIN = 16384
"""The cached tokens of a prefill are padded to a multiple of this."""
Step = tuple[int, int | None]
"""(tokens, cached tokens) of a prefill step, or (requests, None) of a decode step."""


class Graphs(CudaGraphBuffer):
    """Captured steps by shape, and by whether they have log probabilities and changed logits."""

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
    """Return the inputs and outputs on the device. Asynchronous batching has two sets, each with its own graphs."""
    if isinstance(outputs, ContinuousBatchingAsyncIOs):
        return [pair.device_io for pair in outputs.io_pairs]
    return [outputs]


def usual_steps(prefill: int, requests: int, context: int) -> list[Step]:
    """Return the most frequent steps: first turns, later turns after up to ``KEY_GRAIN`` tokens, and decode steps."""
    # The largest first, so that the others fit into its memory.
    steps: list[Step] = [(prefill, max(0, min(KEY_GRAIN, context) - prefill)), (prefill, 0)]
    # First turns of any length up to a chunk are padded to one of these.
    steps += [(size, 0) for size in range((prefill - 1) // QUERY_GRAIN * QUERY_GRAIN, 0, -QUERY_GRAIN)]
    depth = 2048
    while depth <= min(context, KEY_GRAIN):
        # A short later turn, and a chunk of a long first turn.
        steps += [(size, depth - size) for size in (QUERY_GRAIN, prefill) if size < depth]
        depth *= 2
    size = 1
    while size < requests:
        steps.append((size, None))
        size *= 2
    steps.append((requests, None))
    return list(dict.fromkeys(steps))  # with a short context, the first two are the same


def capture(manager: Any, steps: list[Step], quick: bool) -> None:
    """Capture the ``steps`` and run them. With ``quick``, run only the first prefill step and the first decode step.

    The setup of these two (libraries, workspaces, compiled kernels) is usually enough for the others, and to run a step
    takes as long as to capture it. A step that cannot be captured has no graph.
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
    """Do the work of ``ModelRunner._capture_graph`` without running the step first."""
    graph = create_accelerator_graph()
    with accelerator_graph_capture_context(graph, stream=stream, pool=runner.graph_pool_id):
        forward(*args)
    with stream_context(stream):
        graph.replay()
    # The inputs of the next step are copied to the same memory immediately.
    stream.synchronize()
    runner.inputs_and_outputs.set_graph(graph)
