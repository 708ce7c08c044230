"""One process of two on GPUs of their own, in float32: ``python -m tests.gpu.group_worker FOLDER``, by torchrun.

FlashAttention does not compute in float32, so the engine is made here, past the checks, with torch's sdpa. The first
process writes ``FOLDER/answers.json``: what one process answers greedily, what both do, and how long after a cancel
each was idle.
"""

import asyncio
import json
import os
import sys
import time
from contextlib import aclosing
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from granite_demo.engine.batching.engine import BatchingEngine
from granite_demo.engine.kernels.layer import fuse
from granite_demo.loading import tensor_parallel
from granite_demo.loading.tensor_parallel import ALONE, Group
from granite_demo.settings import Settings
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.sampling_params import SamplingParams
from tests.engine.running import answer, has_work
from tests.group_worker import wait_for
from tests.loaded import load_checkpoint

PROMPTS = [[1 + index * 7 % 900 for index in range(300)], [5, 6, 7]]
TOKENS = 100


def opened(folder: Path, group: Group) -> BatchingEngine:
    """The engine over the model in ``folder``, warm."""
    options = LoadOptions(str(folder), dtype="float32", attention="sdpa", engine="batching")
    loaded = load_checkpoint(folder, options, group=group)
    kernels = import_module("granite_demo.engine.kernels.matvec") if torch.cuda.is_available() else None
    fuse(loaded.model, kernels, 4, group)
    engine = BatchingEngine(loaded, cache_tokens=8192, requests=4, prefill=512, group=group)
    engine.warm_up()
    return engine


async def greedy(engine: BatchingEngine) -> list[list[int]]:
    """The answers to ``PROMPTS``."""
    return [await answer(engine, prompt, max_tokens=TOKENS) for prompt in PROMPTS]


async def cancelled(engine: BatchingEngine, folder: Path) -> float:
    """Cancel a long answer; the time of it, in seconds since the epoch."""
    async with aclosing(engine.generate(PROMPTS[1], SamplingParams(max_tokens=5000))) as items:
        count = 0
        async for _ in items:
            count += 1
            if count == 20:
                break
    now = time.time()
    (folder / "cancelled").touch()
    return now


def idle_time(engine: BatchingEngine) -> float:
    """When the loop of this process had nothing left to do, in seconds since the epoch."""
    while has_work(engine._loop):
        time.sleep(0.002)
    return time.time()


def main(folder: Path) -> None:
    """Do the part of this process."""
    tensor_parallel.check = lambda *_: None
    settings = Settings.resolve({}, os.environ)
    group = Group(settings.processes, settings.rank, settings.local_rank)
    found: dict[str, Any] = {}
    if group.leads:
        engine = opened(folder / "model", ALONE)
        found["one"] = asyncio.run(greedy(engine))
        engine.close()
    group.join()
    with group.together():
        engine = opened(folder / "model", group)
    if not group.leads:
        import threading

        times: list[float] = []

        def watch() -> None:
            wait_for(folder / "cancelled")
            times.append(idle_time(engine))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        engine.follow()
        watcher.join()
        group.gather(times[0])
    else:
        found["two"] = asyncio.run(greedy(engine))
        begun = asyncio.run(cancelled(engine, folder))
        own = idle_time(engine)
        time.sleep(1)  # the other process is asked while it still runs
        engine.close()
        found["idle"] = [moment - begun for moment in group.gather(own)]
        (folder / "answers.json").write_text(json.dumps(found))
    group.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
