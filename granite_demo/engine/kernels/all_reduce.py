"""Sums over the processes of a group, for one token, in Triton. The processes do not wait in a common kernel.

Each process writes its part to the memory of all processes as soon as the part is ready (``send``). Each number is in
one word of eight bytes with the sequence number of the sum. The receiver polls until all words have this sequence
number (``_received``), as the LL protocol of NCCL does. There are two buffers in turn. They are enough: a process that
writes to the first buffer again has received the second sum, and the others sent their parts of it after they had read
the first.
"""

# mypy: disallow-untyped-decorators=False
import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from granite_demo.engine.kernels.decode_attention import launch_options
from granite_demo.loading.tensor_parallel import Group

NUMBERS_PER_PROGRAM = 512
"""How many numbers of a sum one program of the receiving kernel processes."""


class Sums:
    """The buffers for sums of ``hidden`` numbers, in this process and in the others. A model has one object."""

    def __init__(self, group: Group, hidden: int, words: torch.Tensor, addresses: list[int]) -> None:
        """``words``: (2 * processes * hidden,) int64. ``addresses``: those of ``words`` in each process."""
        self.size, self.rank = group.size, group.rank
        self._words, device = words, words.device
        self.addresses = torch.tensor(addresses, dtype=torch.int64, device=device)
        self.number = torch.ones(triton.cdiv(hidden, NUMBERS_PER_PROGRAM), dtype=torch.int32, device=device)
        """The sequence number of the next sum, once for each program of ``_received``."""

    def receive(self, like: torch.Tensor) -> torch.Tensor:
        """Return the sum of all parts, added in the order of the ranks, with the shape and dtype of ``like``."""
        out = torch.empty_like(like)
        _received[(len(self.number),)](
            self._words,
            self.number,
            out,
            like.numel(),
            self.size,
            NUMBERS_PER_PROGRAM,
            num_warps=4,
            **launch_options(like.device),
        )
        return out


def sums_of(group: Group, hidden: int) -> Sums | None:
    """Return the buffers, or None if the GPUs cannot share memory. All processes must call this together."""
    shared = group.shared_memory(2 * group.size * hidden)
    return Sums(group, hidden, *shared) if shared else None


@triton.jit
def send(  # type: ignore[no-untyped-def]
    addresses, number, results, rows, mask, N, RANK: tl.constexpr, SIZE: tl.constexpr
):
    """Write ``results`` (n,), which are the elements ``rows`` of N, to all processes."""
    now = tl.load(number)
    word = (now.to(tl.int64) << 32) | (results.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)
    for process in tl.static_range(SIZE):
        target = tl.load(addresses + process).to(tl.pointer_type(tl.int64))
        tl.store(target + ((now & 1) * SIZE + RANK) * N + rows, word, mask=mask)


@triton.jit
def _received(  # type: ignore[no-untyped-def]
    words, number, out, N, SIZE: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):
    if EARLY:
        gdc_launch_dependents()  # all programs of the previous kernel have started, so they do not wait for space
        gdc_wait()
    number += tl.program_id(0)
    now = tl.load(number)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for process in tl.static_range(SIZE):
        source = words + ((now & 1) * SIZE + process) * N + at
        word = tl.load(source, mask=inside, other=0, volatile=True)
        while tl.sum((inside & ((word >> 32).to(tl.int32) != now)).to(tl.int32)) > 0:
            word = tl.load(source, mask=inside, other=0, volatile=True)
        total += (word & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
    tl.store(number, now + 1)
