"""What the memory of a device allows: measured bandwidth, the bytes of one step, and how many users fit.

To choose a token a model reads all its weights once, for all users together, and each user's keys and values.
"""

import time
from collections.abc import Callable, Sequence

import torch

from granite_demo.loading.llama_cpp import LlamaFile
from granite_demo.loading.load import LoadedModel
from granite_demo.loading.placement import free_memory, precision_of
from granite_demo.models.config import count_parameters
from granite_demo.models.memory import element_bytes, kv_bytes_per_token, state_bytes
from granite_demo.types.model_status import gigabytes

PASSES = 5
BUFFER_BYTES = 2**30
"""More than any cache holds; the largest CPUs have several hundred megabytes."""
CPU_USERS = 16
"""More than these would make a CPU answer each of them slower than anybody reads."""
USERS_SHARE = 0.5
"""Of the free memory: what the caches of all users may take. The activations need room, too."""


def bandwidth(device: str) -> float:
    """Bytes per second that memory can deliver: the best of a few passes over more than any cache holds.

    On a GPU a copy, counting what is read and what is written. On a CPU a sum or a copy, whichever is faster.
    """
    size = min(BUFFER_BYTES, free_memory(device) // 4)
    source = torch.ones(max(size, 4) // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    actions: list[tuple[Callable[[], object], int]] = [(lambda: target.copy_(source), 2 * source.nbytes)]
    if device == "cpu":
        actions.append((source.sum, source.nbytes))
    best = 0.0
    for action, moved in actions:
        action()
        for _ in range(PASSES):
            best = max(best, moved / _seconds(action, device))
    return best


def _seconds(action: Callable[[], object], device: str) -> float:
    _wait_for(device)
    start = time.perf_counter()
    action()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()


def step_bytes(loaded: LoadedModel, users: int, context: float) -> float | None:
    """Bytes read to give each of ``users`` one more token after ``context`` tokens; None for an unknown shape.

    Left out: the table of a separate embedding, of which a step reads a row for each user, and the experts that no
    user's token is sent to (on average, if each is as likely as the others).
    """
    if isinstance(loaded.model, LlamaFile) and loaded.model.token_bytes is not None:
        return float(loaded.weight_bytes + users * context * loaded.model.token_bytes)
    if (shape := loaded.shape) is None:
        return None
    precision = precision_of(loaded.placement.dtype, loaded.placement.quantization)
    parameters, size = count_parameters(shape), element_bytes(precision)
    unread = 0.0 if shape.tie_word_embeddings else float(parameters.embedding * size)
    if shape.experts:
        unread += parameters.experts * size * (1 - shape.experts_per_token / shape.experts) ** users
    own = context * kv_bytes_per_token(shape, precision) + state_bytes(shape, precision)
    return loaded.weight_bytes - unread + users * own


def token_limit(loaded: LoadedModel, users: int, context: float, speed: float) -> float | None:
    """Tokens per second of all users together if nothing but reading at ``speed`` bytes per second took time."""
    read = step_bytes(loaded, users, context)
    return None if read is None else users * speed / read


def fitting_users(wanted: Sequence[int], loaded: LoadedModel, tokens: int, free: int) -> tuple[tuple[int, ...], str]:
    """Those of ``wanted`` whose caches of ``tokens`` each fit into ``free`` bytes, one at least; what was left out."""
    device = loaded.placement.device
    most, why = (CPU_USERS, f"at most {CPU_USERS} on a CPU") if device == "cpu" else (max(wanted), "")
    if loaded.shape is not None:
        precision = precision_of(loaded.placement.dtype, loaded.placement.quantization)
        each = tokens * kv_bytes_per_token(loaded.shape, precision) + state_bytes(loaded.shape, precision)
        room = int(USERS_SHARE * free / each)
        if room < most:
            most, why = room, f"at most {room} fit into {gigabytes(free)}"
    kept = tuple(users for users in wanted if users <= most) or (1,)
    dropped = [str(users) for users in wanted if users not in kept]
    return kept, f"Not measured: {', '.join(dropped)} users ({why})." if dropped else ""
