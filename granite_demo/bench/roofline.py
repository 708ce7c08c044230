"""The limit that the memory of a device sets: its measured bandwidth, and the bytes that one step reads.

One step reads all weights once, for all users together, and the keys and values of each user. See the roofline model
of Williams, Waterman and Patterson (2009).
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from granite_demo.loading.device import cores, free_memory
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models.config import count_parameters
from granite_demo.models.gguf_memory import cache_bytes_per_token
from granite_demo.models.memory import element_bytes, kv_bytes_per_token, state_bytes
from granite_demo.types.model_status import gigabytes

PASSES = 5
BUFFER_BYTES = 2**30
"""Larger than the cache of any CPU. The largest have several hundred megabytes."""
CPU_USERS = 16
"""With more users, a CPU answers each of them slower than a person reads."""
USERS_SHARE = 0.5
"""The share of the free memory for the caches of all users. The activations need the rest."""


def bandwidth(device: str) -> float:
    """Return the memory bandwidth in bytes per second: the best of several passes over a buffer larger than any cache.

    On a GPU this is a copy, and both the bytes read and the bytes written count. On a CPU it is the faster of a sum and
    a copy.
    """
    size = min(BUFFER_BYTES, free_memory(device) // 4)
    return _cpu_bandwidth(size) if device == "cpu" else _gpu_bandwidth(size, device)


def _cpu_bandwidth(size: int) -> float:
    source = np.ones(max(size, 4) // 4, dtype=np.float32)
    target = np.empty_like(source)
    parts, targets = np.array_split(source, cores()), np.array_split(target, cores())
    with ThreadPoolExecutor(cores()) as pool:

        def copy() -> None:
            list(pool.map(np.copyto, targets, parts))

        def read() -> None:
            list(pool.map(np.sum, parts))

        return max(_best(copy, 2 * source.nbytes), _best(read, source.nbytes))


def _gpu_bandwidth(size: int, device: str) -> float:
    import torch

    source = torch.ones(max(size, 4) // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    wait = torch.cuda.synchronize if device.startswith("cuda") else torch.mps.synchronize

    def copy() -> None:
        target.copy_(source)
        wait()

    return _best(copy, 2 * source.nbytes)


def _best(action: Callable[[], object], moved: int) -> float:
    """Return the highest rate of several passes of ``action``, which moves ``moved`` bytes."""
    action()
    best = 0.0
    for _ in range(PASSES):
        start = time.perf_counter()
        action()
        best = max(best, moved / (time.perf_counter() - start))
    return best


def step_bytes(loaded: LoadedModel, users: int, context: float) -> float | None:
    """Return the bytes that one step reads: one token for each of ``users`` after ``context`` tokens.

    Two parts of the weights are not counted: the table of a separate embedding, because a step reads one row of it for
    each user, and the experts that no token uses (the expected value, if all experts are equally likely). Returns None
    if the shape is not known.
    """
    if loaded.source.gguf:
        token_bytes = cache_bytes_per_token(loaded.model.header, loaded.model.process.options.cache_type)
        return float(loaded.weight_bytes + users * context * token_bytes)
    if (shape := loaded.shape) is None:
        return None
    from granite_demo.loading.placement import precision_of

    precision = precision_of(loaded.placement.dtype, loaded.placement.quantization)
    parameters, size = count_parameters(shape), element_bytes(precision)
    unread = 0.0 if shape.tie_word_embeddings else float(parameters.embedding * size)
    if shape.experts:
        unread += parameters.experts * size * (1 - shape.experts_per_token / shape.experts) ** users
    own = context * kv_bytes_per_token(shape, precision) + state_bytes(shape, precision)
    return loaded.weight_bytes - unread + users * own


def token_limit(loaded: LoadedModel, users: int, context: float, speed: float) -> float | None:
    """Return the tokens per second of all users if a step only reads memory, at ``speed`` bytes per second."""
    read = step_bytes(loaded, users, context)
    return None if read is None else users * speed / read


def fitting_users(wanted: Sequence[int], loaded: LoadedModel, tokens: int, free: int) -> tuple[tuple[int, ...], str]:
    """Return the numbers of users in ``wanted`` that fit, at least one, and a note on the others.

    Each user has a cache of ``tokens`` tokens. ``free`` is the free memory in bytes.
    """
    device = loaded.placement.device
    most, why = (CPU_USERS, f"at most {CPU_USERS} on a CPU") if device == "cpu" else (max(wanted), "")
    each = 0.0
    if loaded.source.gguf:
        each = tokens * cache_bytes_per_token(loaded.model.header, loaded.model.process.options.cache_type)
    elif loaded.shape is not None:
        from granite_demo.loading.placement import precision_of

        precision = precision_of(loaded.placement.dtype, loaded.placement.quantization)
        each = tokens * kv_bytes_per_token(loaded.shape, precision) + state_bytes(loaded.shape, precision)
    if each:
        room = int(USERS_SHARE * free / each)
        if room < most:
            most, why = room, f"at most {room} fit in {gigabytes(free)}"
    kept = tuple(users for users in wanted if users <= most) or (1,)
    dropped = [str(users) for users in wanted if users not in kept]
    return kept, f"Not measured: {', '.join(dropped)} users ({why})." if dropped else ""
