"""One process of a group with a tiny model: ``python -m tests.group_worker FOLDER TASK``, started by torchrun.

The first process writes its results to ``FOLDER/answers.json``, the second to ``FOLDER/follower.json``.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from granite_demo.backends.open_model import open_model
from granite_demo.engine.batching.engine import BatchingEngine
from granite_demo.errors import EngineError
from granite_demo.loading.tensor_parallel import Group
from granite_demo.settings import Settings
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.sampling_params import SamplingParams
from tests.engine.running import answer, has_work

PROMPTS = [[1 + index * 7 % 60 for index in range(300)], [5, 6, 7]]
SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.2, "max_tokens": 40}


def main(folder: Path, task: str) -> None:
    """Open the model in ``folder/model`` and run the part of this process."""
    logging.basicConfig()
    settings = Settings.resolve({}, os.environ)
    group = Group(settings.processes, settings.rank, settings.local_rank)
    options = LoadOptions(str(folder / "model"), device="cpu", dtype="float32", engine="batching")
    with group.together():
        ready = open_model(folder, 1, options, lambda stage, fraction, detail: None, threading.Event(), group=group)
    engine = ready.engine
    assert isinstance(engine, BatchingEngine)
    if not group.leads:
        if task == "fail":
            ready.loaded.model.model.layers[0].register_forward_pre_hook(fail_late())
        threading.Thread(target=watch, args=(engine, folder), daemon=True).start()
        engine.follow()
    elif task == "fail":
        with contextlib.suppress(EngineError):
            asyncio.run(answer(engine, PROMPTS[1], max_tokens=400))
        time.sleep(60)  # torchrun or the test ends this process
    else:
        found = asyncio.run(answers(engine, folder)) | {"device": ready.loaded.placement.facts[0]}
        (folder / "answers.json").write_text(json.dumps(found))
        engine.close()
    group.leave()


async def answers(engine: BatchingEngine, folder: Path) -> dict[str, Any]:
    """Return greedy and sampled answers, after a cancelled request has ended in all processes."""
    greedy = [await answer(engine, prompt, max_tokens=40) for prompt in PROMPTS]
    sampled = await asyncio.gather(*(answer(engine, prompt, seed=2**40 + 1, **SAMPLED) for prompt in PROMPTS))
    generator = engine.generate(PROMPTS[0], SamplingParams(max_tokens=5000))
    async for _ in generator:
        break
    (folder / "started").touch()
    await asyncio.sleep(1)
    await generator.aclose()
    (folder / "cancelled").touch()
    async with asyncio.timeout(10):
        while has_work(engine._loop) or not (folder / "follower.json").exists():
            await asyncio.sleep(0.05)
    return {"greedy": greedy, "sampled": sampled}


def watch(engine: BatchingEngine, folder: Path) -> None:
    """Write whether this process computed the request, after it has stopped to compute it."""
    wait_for(folder / "started")
    computed = has_work(engine._loop)
    wait_for(folder / "cancelled")
    while has_work(engine._loop):
        time.sleep(0.02)
    partial = folder / "follower.part"
    partial.write_text(json.dumps({"computed": computed}))
    partial.rename(folder / "follower.json")


def wait_for(path: Path) -> None:
    """Return once the file exists."""
    while not path.exists():
        time.sleep(0.02)


def fail_late() -> Any:
    """Return a hook that raises in the tenth step."""
    steps = iter(range(10))

    def hook(*_: Any) -> None:
        if next(steps, None) is None:
            raise ZeroDivisionError("broken")

    return hook


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
