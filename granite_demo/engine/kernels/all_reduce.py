"""Triton: sums over the processes of a group, for one token, without a kernel that all of them are in at a time.

Each process writes its part into the memory of all of them as soon as it has it (``send``), every number beside the
number of this sum, in one word of eight bytes; who wants the sum looks until all words are of this sum (``_received``),
as NCCL's LL protocol does. Of the places for a sum there are two: whoever writes into the first one again has got the
sum after it, of which the others sent their parts after they had read the first.
"""

# mypy: disallow-untyped-decorators=False
import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from granite_demo.engine.kernels.decode_attention import early
from granite_demo.loading.tensor_parallel import Group

NUMBERS = 512
"""Of a sum for a program."""


class Sums:
    """The places for sums of one token's ``hidden`` numbers, here and in the other processes. One for a model."""

    def __init__(self, group: Group, hidden: int, words: torch.Tensor, addresses: list[int]) -> None:
        """``words``: two for each number of each process; ``addresses``: of those of each process."""
        self.size, self.rank = group.size, group.rank
        self._words, device = words, words.device
        self.places = torch.tensor(addresses, dtype=torch.int64, device=device)
        self.number = torch.ones(triton.cdiv(hidden, NUMBERS), dtype=torch.int32, device=device)
        """Of the next sum, once for each program of ``_received``."""

    def receive(self, like: torch.Tensor) -> torch.Tensor:
        """What all have sent, added up in the order of the processes; shape and type as ``like``."""
        out = torch.empty_like(like)
        _received[(len(self.number),)](
            self._words, self.number, out, like.numel(), self.size, NUMBERS, num_warps=4, **early(like.device)
        )
        return out


def sums_of(group: Group, hidden: int) -> Sums | None:
    """For all processes of the group at a time. None where their GPUs cannot share memory."""
    shared = group.shared_memory(2 * group.size * hidden)
    return Sums(group, hidden, *shared) if shared else None


@triton.jit
def send(places, number, results, rows, mask, N, RANK: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the ``results`` (n,) of ``rows``, of N in all, to all processes."""
    now = tl.load(number)
    word = (now.to(tl.int64) << 32) | (results.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)
    for process in tl.static_range(SIZE):
        place = tl.load(places + process).to(tl.pointer_type(tl.int64))
        tl.store(place + ((now & 1) * SIZE + RANK) * N + rows, word, mask=mask)


@triton.jit
def _received(  # type: ignore[no-untyped-def]
    words, number, out, N, SIZE: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):
    if EARLY:
        gdc_launch_dependents()  # all programs of the kernel before have begun, so nothing takes their places
        gdc_wait()
    number += tl.program_id(0)
    now = tl.load(number)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for process in tl.static_range(SIZE):
        place = words + ((now & 1) * SIZE + process) * N + at
        word = tl.load(place, mask=inside, other=0, volatile=True)
        while tl.sum((inside & ((word >> 32).to(tl.int32) != now)).to(tl.int32)) > 0:
            word = tl.load(place, mask=inside, other=0, volatile=True)
        total += (word & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
    tl.store(number, now + 1)
