"""The ways to generate text that the documentation of transformers shows, as a baseline.

They run on copies of the weights, because an engine owns the thread of its model and can change the attention or the
weights in place, and because each round measures both. The copies are loaded after the engine, so that they have no
effect on its choices. If the memory is too small for a copy, its baselines are not measured.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from granite_demo.bench import llama_loop
from granite_demo.bench.measure import TimedAnswer, TimedRun
from granite_demo.errors import OutOfMemoryError
from granite_demo.hub import sample
from granite_demo.loading.gc import release_memory
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models import catalogue
from granite_demo.models.installation import torch_problem
from granite_demo.types.load_options import Dtype, LoadOptions, Quantization
from granite_demo.types.model_status import Chosen

GENERATE = "generate + TextIteratorStreamer"
GENERATE_BATCH = "generate_batch"
STATIC_WAY = "generate, static cache, compiled"
CACHE_BLOCK = 256
"""Tokens in a block of the cache of continuous batching, the default of transformers."""


def load_copies(loaded: LoadedModel, options: LoadOptions) -> tuple[list[LoadedModel], list[str]]:
    """Load the model of ``loaded`` again. Return the copies, and a note for each copy that is not measured.

    On a CPU there is one copy in float32 and one in bfloat16, because either can be faster. The generation settings are
    the defaults of transformers: no end token, and greedy decoding.
    """
    if problem := torch_problem("The documented use of transformers"):
        return [], [problem]
    from transformers import GenerationConfig

    from granite_demo.loading.load import load_model
    from granite_demo.loading.placement import place_source

    placement, source = loaded.placement, replace(loaded.source, gguf=None)
    own: Any = placement.dtype_name
    dtypes: list[Dtype] = [own]
    if placement.device == "cpu" and placement.quantization == "none":
        dtypes = ["float32", "bfloat16"]
    copies, notes = [], list[str]()
    options = replace(options, quantization=cast(Quantization, placement.quantization))
    if loaded.source.gguf:
        if loaded.spec == catalogue.SAMPLE:
            source = replace(source, folder=source.folder.parent / sample.FOLDER)
        if not (source.folder / "config.json").is_file():
            return [], ["The documented ways are not measured: they need safetensors (run --engine dynamic once)."]
        dtypes, options = ["float32", "bfloat16"], replace(options, quantization="none", attention="auto")
    device = Chosen(placement.device, "the device of the engine")
    for dtype in dtypes:
        try:
            copy = load_model(source, place_source(source, replace(options, dtype=dtype), device))
        except OutOfMemoryError as error:
            notes.append(f"The documented ways in {dtype} are not measured: {error}")
            continue
        copy.model.generation_config = GenerationConfig()
        copies.append(copy)
    return copies, notes


def like(loaded: LoadedModel, copies: Sequence[LoadedModel]) -> Sequence[LoadedModel]:
    """Return the copy in the precision of ``loaded`` as a list of one, or an empty list."""
    return [copy for copy in copies if copy.placement.dtype == loaded.placement.dtype][:1]


def way_for(users: int) -> str:
    """Return the name of the documented way for this number of users."""
    return GENERATE if users == 1 else GENERATE_BATCH


def answer(loaded: LoadedModel, prompts: Sequence[Sequence[int]], tokens: int) -> TimedRun:
    """Generate ``tokens`` tokens for each of ``prompts``, in the documented way for their number."""
    return generate(loaded, prompts[0], tokens) if len(prompts) == 1 else generate_batch(loaded, prompts, tokens)


def static(loaded: LoadedModel, prompts: Sequence[Sequence[int]], tokens: int) -> TimedRun:
    """Answer one user with a static cache. On a GPU, ``generate`` then compiles its steps."""
    return generate(loaded, prompts[0], tokens, cache_implementation="static")


def follow_up(loaded: LoadedModel, first: Sequence[int], answered: int, added: Sequence[int], tokens: int) -> TimedRun:
    """Generate ``answered`` tokens after the prompt ``first``, then measure the next turn, which adds ``added``.

    The next turn uses the ``past_key_values`` of the first.
    """
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=loaded.model.config)
    ids = torch.tensor([list(first)], device=loaded.model.device)
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": cache}
    chat = loaded.model.generate(**arguments, max_new_tokens=answered, do_sample=False)[0].tolist()
    return generate(loaded, [*chat, *added], tokens, past_key_values=cache)


def load_seconds(folder: Path, dtype: Any, device: str) -> float:
    """Return the seconds that ``from_pretrained`` takes. The model is then released."""
    import torch
    from transformers import AutoModelForCausalLM

    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    del model
    release_memory()
    return seconds


def generate(loaded: LoadedModel, prompt_ids: Sequence[int], tokens: int, **options: Any) -> TimedRun:
    """Answer one user, greedily, with ``generate`` in a thread and a ``TextIteratorStreamer``.

    The time of a token is when ``generate`` puts it into the streamer, which can hold its text back for longer.
    """
    import torch
    from transformers import TextIteratorStreamer

    start = time.perf_counter()
    stamps: list[float] = []
    errors: list[BaseException] = []

    class Timed(TextIteratorStreamer):
        def put(self, value: Any) -> None:
            stamps.append(time.perf_counter() - start)
            super().put(value)  # type: ignore[no-untyped-call]

    streamer = Timed(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
    input_ids = torch.tensor([list(prompt_ids)], device=loaded.model.device)
    arguments = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **options}

    def work() -> None:
        try:
            loaded.model.generate(**arguments, streamer=streamer, max_new_tokens=tokens, do_sample=False)
        except BaseException as error:
            errors.append(error)
            streamer.end()  # type: ignore[no-untyped-call]

    thread = threading.Thread(target=work)
    thread.start()
    for _ in streamer:
        pass
    thread.join()
    if errors:
        raise errors[0]
    times = stamps[1:]  # the first value put is the prompt
    return TimedRun((TimedAnswer(len(times), times[0], times[-1]),))


def generate_batch(loaded: LoadedModel, prompts: Sequence[Sequence[int]], tokens: int) -> TimedRun:
    """Answer many users, greedily, with continuous batching.

    The times are its own time stamps, which exclude its start of a few seconds. Raises RuntimeError if a request fails.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    settings = ContinuousBatchingConfig()
    if loaded.placement.device == "cpu":
        # The default takes 60 % of the memory of the machine.
        blocks = -(-(len(prompts[0]) + tokens) // CACHE_BLOCK) + 1
        settings = ContinuousBatchingConfig(num_blocks=len(prompts) * blocks, max_batch_tokens=2 * CACHE_BLOCK)
    outputs = loaded.model.generate_batch(
        [list(prompt) for prompt in prompts],
        generation_config=GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1),
        continuous_batching_config=settings,
        record_timestamps=True,
    ).values()
    release_memory()
    if len(outputs) < len(prompts) or any(output.error for output in outputs):
        raise RuntimeError(next((output.error for output in outputs if output.error), "requests were lost"))
    start = min(output.created_time for output in outputs)
    stamps = [[stamp - start for stamp in output.timestamps] for output in outputs]
    return TimedRun(tuple(TimedAnswer(len(times), times[0], times[-1]) for times in stamps))


LLAMA = "the bare loop of llama.cpp's wheel"


def llama_answer(loaded: LoadedModel, prompts: Sequence[Sequence[int]], tokens: int) -> TimedRun:
    """TimedAnswer ``prompts`` together, greedily, with the options of the engine. The load does not count."""
    order = {
        "options": asdict(loaded.model.process.options),
        "prompts": [list(ids) for ids in prompts],
        "tokens": tokens,
    }
    command = [sys.executable, "-P", "-c", llama_loop.LOOP_START, str(Path(__file__).parents[2])]
    child = subprocess.run(command, input=f"{json.dumps(order)}\n", capture_output=True, text=True)
    if child.returncode:
        raise RuntimeError(f"the bare loop ended with code {child.returncode}: {child.stderr[-300:]}")
    stamps = json.loads(child.stdout)
    return TimedRun(tuple(TimedAnswer(len(times), times[0], times[-1]) for times in stamps))
