"""The greedy text of the default engine is that of the bare library, alone and beside seven others.

A batch of another size rounds otherwise, so texts can part where the best two tokens are nearly equal.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from granite_demo.engine.llama_cpp import LlamaEngine
from tests.engine.llama_engines import MISSING, file_engine
from tests.engine.running import answer

pytestmark = [pytest.mark.release, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

ROOT = Path(__file__).parents[2]
TOKENS = 200
TIE = 0.1
"""Log probability between two tokens of which rounding may choose either."""
PROMPTS = (
    "Once upon a time, in a small village by the sea,",
    "The three most important things to know about the history of Rome are",
    "def fibonacci(n):\n    ",
    "Dear Sir or Madam,\n\nI am writing to",
    "Water boils at 100 degrees because",
)
OTHERS = tuple(f"Number {number} is a number that" for number in range(7))
LIBRARY = """
import json, os, sys
from granite_demo.loading.llama_server import ServerOptions, load
order = json.loads(sys.stdin.readline())
server = load(ServerOptions(**order["options"]))
for prompt in order["prompts"]:
    replies = []
    body = {"prompt": prompt, "max_tokens": order["tokens"], "temperature": 0.0, "ignore_eos": True, "logprobs": 2}
    server.handle_completions({**body, "cache_prompt": False}, lambda reply: bool(replies.append(reply)))
    rows = replies[-1]["choices"][0]["logprobs"]["content"]
    print(json.dumps([[row["id"], [other["logprob"] for other in row["top_logprobs"]]] for row in rows]), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def engine(gguf_path: Path) -> Iterator[LlamaEngine]:
    engine = file_engine(gguf_path, ignore_ends=True, slots=8)
    yield engine
    engine.close()


def of_the_library(engine: LlamaEngine, prompts: list[list[int]], folder: Path) -> list[list[tuple[int, list[float]]]]:
    """The tokens of each answer, with the log probabilities of the best two."""
    options = {**asdict(engine._process.options), "socket": str(folder / "bare.sock"), "key": "unused"}
    order = json.dumps({"options": options, "prompts": prompts, "tokens": TOKENS})
    run = subprocess.run(
        [sys.executable, "-c", LIBRARY], input=f"{order}\n", cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]


def assert_same(expected: list[tuple[int, list[float]]], ours: list[int]) -> None:
    """The same tokens, up to the first that is nearly a tie."""
    assert len(expected) == len(ours) == TOKENS
    for place, ((token, (best, second)), own) in enumerate(zip(expected, ours, strict=True)):
        if token != own:
            print(f"the texts part at token {place}, {best - second:.3f} between the best two")
            assert best - second < TIE, f"token {place}"
            return


async def test_greedy_text_is_that_of_the_library(engine: LlamaEngine, sample_tokenizer: Any, tmp_path: Path) -> None:
    prompts, others = ([sample_tokenizer(text).input_ids for text in texts] for texts in (PROMPTS, OTHERS))
    expected = await asyncio.to_thread(of_the_library, engine, prompts, tmp_path)
    assert len(expected) == len(PROMPTS)
    for prompt, rows in zip(prompts, expected, strict=True):
        assert_same(rows, await answer(engine, prompt, max_tokens=TOKENS))
        together = (answer(engine, ids, max_tokens=TOKENS) for ids in (prompt, *others))
        ours, *_ = await asyncio.gather(*together)
        assert_same(rows, ours)
