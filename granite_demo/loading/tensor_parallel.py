"""Tensor parallelism: a ``Group`` of processes, started by torchrun, that each have a part of every layer.

The first process serves the page and has the requests. The others compute the same steps (``BatchingEngine.follow``).
No process can continue without the others, so if one ends, all end. torch is imported only when a group is joined.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from granite_demo.errors import ConfigurationError, GraniteDemoError, ModelError
from granite_demo.loading import gc as garbage
from granite_demo.models.config import Shape
from granite_demo.types.load_options import LoadOptions

log = logging.getLogger(__name__)

T = TypeVar("T")

SPLIT_TYPES = {"granite", "llama"}
"""The model types whose attention and MLP transformers can split (``base_model_tp_plan``)."""
FETCH_TIMEOUT = timedelta(days=1)
"""How long the other processes wait while the first one downloads a model."""
LOAD_TIMEOUT = timedelta(hours=2)
END_SECONDS = 20.0
"""The maximum time for a regular exit. It is limited because a process can wait for one that is dead."""


class Group:
    """This process and the processes that share the model with it. ``ALONE`` is a group of one process."""

    def __init__(self, size: int = 1, rank: int = 0, local_rank: int = 0) -> None:
        self.size = size
        self.rank = rank
        self.local_rank = local_rank
        self._gloo: Any = None
        self.peer_access = False
        """Whether each GPU can access the memory of all others. Known after ``join``."""

    @property
    def leads(self) -> bool:
        """Whether this process serves the page."""
        return self.rank == 0

    @property
    def fixed(self) -> str:
        """Why the model cannot be changed or unloaded, or "" if it can."""
        return "" if self.size == 1 else "Several processes share this model. Stop them to start with another one."

    def join(self) -> None:
        """Connect to the other processes. Raises ConfigurationError if there is no GPU for this process."""
        if self.size == 1 or self._gloo is not None:
            return
        import torch
        import torch.distributed as dist

        # The continuous batching of transformers sets this too late: NCCL reads it when the processes connect.
        os.environ.setdefault("NCCL_GRAPH_MIXING_SUPPORT", "0")
        device = None
        if torch.cuda.is_available():
            if self.local_rank >= (count := torch.cuda.device_count()):
                raise ConfigurationError(
                    f"{self.size} processes need {self.size} GPUs, but there are {count}. "
                    f"Start torchrun with --nproc-per-node {count}."
                )
            device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device else "gloo",
            rank=self.rank,
            world_size=self.size,
            timeout=LOAD_TIMEOUT,
            device_id=device,
        )
        self._gloo = dist.new_group(backend="gloo", timeout=FETCH_TIMEOUT)
        self.peer_access = bool(device) and all(self.gather(self._can_access_peers()))

    def _can_access_peers(self) -> bool:
        import torch

        count = torch.cuda.device_count()
        others = [other for other in range(count) if other != self.local_rank]
        return self.size <= count and all(torch.cuda.can_device_access_peer(self.local_rank, other) for other in others)

    def shared_memory(self, words: int) -> tuple[Any, list[int]] | None:
        """Allocate ``words`` int64 zeros that all GPUs can access. Return the tensor and its address in each process.

        All processes must call this together. If the GPUs cannot share memory, the result is None and ``peer_access``
        becomes false.
        """
        import torch
        import torch.distributed as dist
        import torch.distributed._symmetric_memory as symmetric

        # Multicast in the switch of the GPUs is not necessary, and if it fails, all GPUs need a restart.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        world: Any = dist.group.WORLD
        found: tuple[Any, list[int]] | None = None
        try:
            memory: Any = symmetric.empty(words, dtype=torch.int64, device=torch.device("cuda", self.local_rank))
            found = memory, list(symmetric.rendezvous(memory, world).buffer_ptrs)
            memory.zero_()
            torch.cuda.synchronize()
        except RuntimeError as error:  # a container can prevent it
            log.warning("The GPUs cannot share memory: %s", error)
            found = None
        self.peer_access = all(self.gather(found is not None))  # also a barrier: no process writes before all zeros
        return found if self.peer_access else None

    def from_first(self, compute: Callable[[], T]) -> T:
        """Run ``compute`` in the first process and return its result in all of them.

        If it raises, the other processes raise ModelError.
        """
        if self.size == 1:
            return compute()
        import torch.distributed as dist

        outcome: list[Any] = [None, False]
        try:
            if self.leads:
                outcome = [compute(), True]
        finally:
            dist.broadcast_object_list(outcome, src=0, group=self._gloo)
        result: T
        result, succeeded = outcome
        if not succeeded:
            raise ModelError("The first process could not prepare the model.")
        return result

    def least(self, number: int) -> int:
        """Return the smallest ``number`` of all processes."""
        if self.size == 1:
            return number
        import torch
        import torch.distributed as dist

        smallest = torch.tensor(number)
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN, group=self._gloo)
        return int(smallest)

    def all_reduce(self, part: Any) -> None:
        """Replace the tensor by its sum over all processes. A CUDA graph can capture this."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(part)

    def gather(self, mine: T) -> list[T]:
        """Return the values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [mine]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine, group=self._gloo)
        return found

    def leave(self) -> None:
        """Disconnect from the other processes, which must do the same."""
        if self._gloo is not None:
            import torch.distributed as dist

            self._gloo = None
            garbage.collect()  # NCCL cannot end while CUDA graphs exist
            with self.deadline():
                dist.destroy_process_group()

    @contextmanager
    def together(self) -> Iterator[None]:
        """If the block raises, end this process and thus all of them, because the others cannot be notified."""
        try:
            yield
        except BaseException as error:
            if self.size == 1:
                raise
            text = error.user_text if isinstance(error, GraniteDemoError) else f"{type(error).__name__}: {error}."
            self.abort(text)

    def abort(self, message: str) -> NoReturn:
        """End this process immediately; torchrun then ends the others. A regular exit could wait for one of them."""
        log.error("%s Process %d of %d ends.", message, self.rank + 1, self.size)
        logging.shutdown()
        os._exit(1)

    @contextmanager
    def deadline(self) -> Iterator[None]:
        """End this process if the block, a part of the regular exit, takes more than END_SECONDS."""
        timer = self._timer()
        yield
        timer.cancel()

    def end_with_the_first(self) -> None:
        """Ignore signals except for a deadline, because the first process handles them and ends all processes."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._timer())

    def _timer(self) -> threading.Timer:
        timer = threading.Timer(END_SECONDS, self.abort, ("The processes did not end together.",))
        timer.daemon = True
        if self.size > 1:
            timer.start()
        return timer


ALONE = Group()


def check(processes: int, options: LoadOptions, device: str, attention: str, shape: Shape | None) -> None:
    """Raise ConfigurationError, with a solution, if ``processes`` processes cannot share this model."""
    if problem := _problem(processes, options, device, attention, shape):
        raise ConfigurationError(f"A model cannot be shared by {processes} processes here: {problem}")


def _problem(processes: int, options: LoadOptions, device: str, attention: str, shape: Shape | None) -> str:
    import torch

    if device == "cpu" and torch.cuda.is_available():
        return "several processes always use the GPUs if there are any. Remove --device."
    if device == "mps":
        return "an Apple GPU supports only one process. Start without torchrun."
    if shape is None or shape.model_type not in SPLIT_TYPES:
        kind = shape.model_type if shape else "unknown"
        return (
            f"its type is {kind}, and only dense Granite models can be split. Choose such a model, or start without "
            "torchrun."
        )
    if shape.kv_heads % processes:
        fitting = " or ".join(str(count) for count in range(1, shape.kv_heads + 1) if shape.kv_heads % count == 0)
        return f"its {shape.kv_heads} key-value heads need --nproc-per-node {fitting}."
    if options.quantization not in ("auto", "none"):
        return f"weights in {options.quantization} cannot be split. Use --quantization none."
    if options.engine_kind and not options.engine_kind.spans_processes:
        return f"the {options.engine} engine supports only one process. Remove --engine."
    if device == "cuda" and not attention.startswith(("flash_attention_2", "flash_attention_3")):
        return f"FlashAttention 2 or 3 is necessary, but the attention is {attention}. Run: pip install flash-attn"
    return ""
