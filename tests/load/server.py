"""The server under load: the real application, with its state at /v1/load/state.

``process`` starts it as ``python -m tests.load.server``.
"""

import argparse
import asyncio
import threading
import time
from collections import defaultdict
from contextlib import aclosing
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.routing import Route

from granite_demo.access import Access, Limits
from granite_demo.backends.limited import LimitedBackend
from granite_demo.backends.local import LocalBackend
from granite_demo.backends.model_manager import ModelManager, ReadyModel
from granite_demo.engine.protocol import Engine
from granite_demo.server.policy import limits_of, policy_of
from granite_demo.settings import Settings
from granite_demo.types.load_options import LoadOptions, Report
from granite_demo.types.sampling_params import SamplingParams
from tests.fakes import SOURCE
from tests.load.engine import FixedSpeedEngine, RecordingEngine

if TYPE_CHECKING:
    from granite_demo.loading.loaded_model import LoadedModel

TEMPLATE = (
    "{% for message in messages %}<|start_of_role|>{{ message.role }}<|end_of_role|>{{ message.content }}"
    "<|end_of_text|>\n{% endfor %}<|start_of_role|>assistant<|end_of_role|>"
)
BARE_TOKENS = 64


def byte_model() -> "LoadedModel":
    """Return a model with a byte tokenizer and without weights."""
    import torch

    from granite_demo.loading.device import Placement
    from granite_demo.loading.loaded_model import LoadedModel
    from tests.bytetokens import byte_tokenizer

    return LoadedModel(
        SimpleNamespace(config=SimpleNamespace(vocab_size=300)),
        byte_tokenizer(TEMPLATE),
        SOURCE,
        Placement("cpu", torch.float32, "none", "sdpa", None, reasons=defaultdict(str)),
        context_length=131_072,
        eos_ids=frozenset(),
    )


def fake_model(rate: float, ttft: float, places: int) -> ReadyModel:
    """Return a model with the fake engine."""
    return ReadyModel(byte_model(), FixedSpeedEngine(rate, ttft, places))


def real_sample() -> ReadyModel:
    """Return the sample model with its default engine."""
    from granite_demo.backends.open_model import open_model

    cache = Settings.resolve({}, {}).cache_dir
    options = LoadOptions("sample", device="cpu")
    return open_model(cache, 1, options, lambda *_: None, threading.Event(), ignore_ends=True)


async def bare_rate(engine: Engine) -> float:
    """Return the tokens/s of one request without the first token, measured without a server."""
    times = []
    sampling = SamplingParams(max_tokens=BARE_TOKENS, temperature=1.0, seed=0)
    async with aclosing(engine.generate([70] * 16, sampling)) as tokens:
        async for _ in tokens:
            times.append(time.perf_counter())
    return (len(times) - 1) / (times[-1] - times[0])


def main() -> None:
    """Serve until a signal. The first line of the output has the address and the bare rate."""
    from granite_demo.server.app import create_app
    from granite_demo.server.run import address, bind, serve

    asked = _arguments()
    ready = real_sample() if asked.engine == "sample" else fake_model(asked.rate, asked.ttft, asked.places)
    rate = asyncio.run(bare_rate(ready.engine))
    engine = RecordingEngine(ready.engine)

    def load(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        return ReadyModel(ready.loaded, engine)

    settings = Settings.resolve({"host": "0.0.0.0"} if asked.public else {}, {})
    limits = limits_of(settings) if asked.public else Limits()
    backend = LimitedBackend(LocalBackend(ModelManager(load), LoadOptions("sample")), limits)
    app = create_app(backend, Access(bool(asked.public)), policy_of(settings) if asked.public else None)
    # Before the page, which handles all other paths.
    app.router.routes.insert(0, Route("/v1/load/state", partial(_state, engine)))
    listener = bind("127.0.0.1", 0)
    serve(app, backend, listener, lambda: print(address(listener), rate, flush=True))


async def _state(engine: RecordingEngine, request: Request) -> JSONResponse:
    stats = engine.stats()
    tasks = len(asyncio.all_tasks())
    names = sorted(thread.name for thread in threading.enumerate())
    return JSONResponse(
        {
            "running": stats.running,
            "waiting": stats.waiting,
            "tasks": tasks,
            "threads": names,
            "served": engine.record() if "served" in request.query_params else [],
        }
    )


def _arguments() -> Any:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=("fake", "sample"), default="fake")
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--ttft", type=float, default=0.05)
    parser.add_argument("--public", type=float, default=0.0)
    parser.add_argument("--places", type=int, default=64)
    return parser.parse_args()


if __name__ == "__main__":
    main()
