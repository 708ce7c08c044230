"""Processes that hold a part of every layer each (tensor parallelism), as torchrun starts them: a ``Group``.

The first process serves the page and has the requests; the others compute along (``BatchingEngine.follow``). None of
them can go on without the rest, so whatever ends one ends all. Imports torch only when a group is joined.
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
"""The architectures whose attention and MLP transformers can split (``base_model_tp_plan``)."""
FETCH_TIMEOUT = timedelta(days=1)
"""How long the others wait for the first process to download a model."""
LOAD_TIMEOUT = timedelta(hours=2)
END_SECONDS = 20.0
"""How long a process may take to end in order. One that died may be waited for."""


class Group:
    """This process and those that share the model with it; ``ALONE`` where there is one."""

    def __init__(self, size: int = 1, rank: int = 0, local_rank: int = 0) -> None:
        self.size = size
        self.rank = rank
        self.local_rank = local_rank
        self._talking: Any = None
        self.reads_others = False
        """Whether all GPUs can read and write the memory of all, once the processes have met."""

    @property
    def leads(self) -> bool:
        """Whether this process serves the page."""
        return self.rank == 0

    @property
    def fixed(self) -> str:
        """Why the model cannot be changed or unloaded, or nothing."""
        return "" if self.size == 1 else "Several processes share this model. Stop them to start with another one."

    def join(self) -> None:
        """Meet the other processes. Raises ConfigurationError where there is no GPU for this one."""
        if self.size == 1 or self._talking is not None:
            return
        import torch
        import torch.distributed as dist

        # As continuous batching wants it, which asks for it too late: NCCL reads this when the processes meet.
        os.environ.setdefault("NCCL_GRAPH_MIXING_SUPPORT", "0")
        device = None
        if torch.cuda.is_available():
            if self.local_rank >= (count := torch.cuda.device_count()):
                raise ConfigurationError(
                    f"{self.size} processes need a GPU each, and here are {count}. "
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
        self._talking = dist.new_group(backend="gloo", timeout=FETCH_TIMEOUT)
        self.reads_others = bool(device) and all(self.gather(self._can_read_others()))

    def _can_read_others(self) -> bool:
        import torch

        count = torch.cuda.device_count()
        others = [other for other in range(count) if other != self.local_rank]
        return self.size <= count and all(torch.cuda.can_device_access_peer(self.local_rank, other) for other in others)

    def shared_memory(self, words: int) -> tuple[Any, list[int]] | None:
        """So many int64 words, all 0, and where they are in each process; None where the GPUs cannot share memory.

        For all processes at a time. ``reads_others`` tells of it afterwards.
        """
        import torch
        import torch.distributed as dist
        import torch.distributed._symmetric_memory as symmetric

        # Multicast in the switch of the GPUs is not needed for this, and where it fails all of them need a restart.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        world: Any = dist.group.WORLD
        found: tuple[Any, list[int]] | None = None
        try:
            memory: Any = symmetric.empty(words, dtype=torch.int64, device=torch.device("cuda", self.local_rank))
            found = memory, list(symmetric.rendezvous(memory, world).buffer_ptrs)
            memory.zero_()
            torch.cuda.synchronize()
        except RuntimeError as error:  # a container may forbid it
            log.warning("The GPUs cannot share memory: %s", error)
            found = None
        self.reads_others = all(self.gather(found is not None))  # and nobody writes before all are 0
        return found if self.reads_others else None

    def from_first(self, compute: Callable[[], T]) -> T:
        """What the first process computes, for all. Where it raises a GraniteDemoError, the others raise ModelError."""
        if self.size == 1:
            return compute()
        import torch.distributed as dist

        outcome: list[Any] = [None, False]
        try:
            if self.leads:
                outcome = [compute(), True]
        finally:
            dist.broadcast_object_list(outcome, src=0, group=self._talking)
        result: T
        result, succeeded = outcome
        if not succeeded:
            raise ModelError("The first process could not make the model ready.")
        return result

    def least(self, number: int) -> int:
        """The smallest of the numbers that the processes have."""
        if self.size == 1:
            return number
        import torch
        import torch.distributed as dist

        smallest = torch.tensor(number)
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN, group=self._talking)
        return int(smallest)

    def add_up(self, part: Any) -> None:
        """Make a tensor the sum of those that the processes have. May be recorded in a CUDA graph."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(part)

    def gather(self, mine: T) -> list[T]:
        """What each process gives, in the order of their ranks."""
        if self.size == 1:
            return [mine]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine, group=self._talking)
        return found

    def leave(self) -> None:
        """Part from the others, who do the same."""
        if self._talking is not None:
            import torch.distributed as dist

            self._talking = None
            garbage.collect()  # recorded steps that wait for it hold NCCL's end up
            with self.deadline():
                dist.destroy_process_group()

    @contextmanager
    def together(self) -> Iterator[None]:
        """End this process, and so all of them, if the block fails: the others cannot be told otherwise."""
        try:
            yield
        except BaseException as error:
            if self.size == 1:
                raise
            text = error.user_text if isinstance(error, GraniteDemoError) else f"{type(error).__name__}: {error}."
            self.abort(text)

    def abort(self, message: str) -> NoReturn:
        """End this process at once; torchrun then ends the others. Any other way out could wait for one of them."""
        log.error("%s Process %d of %d ends.", message, self.rank + 1, self.size)
        logging.shutdown()
        os._exit(1)

    @contextmanager
    def deadline(self) -> Iterator[None]:
        """End this process if the block, which ends it in order, takes too long."""
        timer = self._timer()
        yield
        timer.cancel()

    def end_with_the_first(self) -> None:
        """Leave signals to the first process, which ends the work of all; here they only set a deadline."""
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
    """Raise ConfigurationError, with what to do, for what ``processes`` processes cannot run together."""
    if problem := _problem(processes, options, device, attention, shape):
        raise ConfigurationError(f"A model cannot be shared by {processes} processes here: {problem}")


def _problem(processes: int, options: LoadOptions, device: str, attention: str, shape: Shape | None) -> str:
    import torch

    if device == "cpu" and torch.cuda.is_available():
        return "there are GPUs, and they are taken then. Leave --device out."
    if device == "mps":
        return "Apple's GPU takes one process. Start it without torchrun."
    if shape is None or shape.model_type not in SPLIT_TYPES:
        kind = shape.model_type if shape else "of an unknown kind"
        return f"this one is {kind}, and only the dense Granite models can be split. Choose one, or leave torchrun out."
    if shape.kv_heads % processes:
        fitting = " or ".join(str(count) for count in range(1, shape.kv_heads + 1) if shape.kv_heads % count == 0)
        return f"its {shape.kv_heads} key-value heads need --nproc-per-node {fitting}."
    if options.quantization not in ("auto", "none"):
        return f"weights in {options.quantization} cannot be split. Take exact ones, with --quantization none."
    if options.engine not in ("auto", "batching"):
        return f"the {options.engine} engine works in one process. Leave --engine out."
    if device == "cuda" and not attention.startswith(("flash_attention_2", "flash_attention_3")):
        return f"it takes FlashAttention 2 or 3, and the attention is {attention}. Run: pip install flash-attn"
    return ""
