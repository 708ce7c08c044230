"""Recording work on the GPU in a CUDA graph, which then starts with one call instead of hundreds."""

from collections.abc import Callable

import torch

Record = Callable[[Callable[[], object]], Callable[[], None]]
"""Takes work that reads and writes the same tensors each time; returns what does it again."""


class GraphRecorder:
    """Records graphs that share one pool of memory, so their results have to be copied out of it by the work."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], object]) -> Callable[[], None]:
        """``work`` must have run once before: what it sets up at first use cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            # Other threads, with models of their own, may allocate meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()
        finally:
            torch.cuda.set_stream(stream)  # which a failed recording leaves changed
        return graph.replay
