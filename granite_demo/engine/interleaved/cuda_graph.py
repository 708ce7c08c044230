"""Records GPU work in a CUDA graph, which starts all kernels with one call instead of hundreds."""

from collections.abc import Callable

import torch

Record = Callable[[Callable[[], object]], Callable[[], None]]
"""Takes a function that reads and writes the same tensors in each call. Returns a function that repeats its work."""


class GraphRecorder:
    """Records graphs that share one memory pool. The recorded work must copy its results out of this pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], object]) -> Callable[[], None]:
        """Record ``work``, which must have run once before, because its first run cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            # Other threads with other models can allocate memory at the same time.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()
        finally:
            torch.cuda.set_stream(stream)  # a failed recording does not restore it
        return graph.replay
