"""Our API and ``transformers serve`` over the same checkpoint: the same text, usage and reason to end."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.engine.protocol import Engine
from granite_demo.loading.loaded_model import LoadedModel
from tests.sample_server import serving

QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "Count from one to five.",
    "Say hello in Spanish.",
    "What is 2 + 2?",
    "Write a haiku about rain.",
    "Who wrote Hamlet?",
    "What does a compiler do?",
    "List two fruits.",
    "Is the sun a star?",
    "Translate cat into German.",
    "What is the largest ocean?",
]
SYSTEM = {"role": "system", "content": "Answer in one sentence."}


def conversations() -> list[list[dict[str, str]]]:
    """Twelve single questions, four with a system message and four with an answer before."""
    single = [[{"role": "user", "content": question}] for question in QUESTIONS]
    with_system = [[SYSTEM, *conversation] for conversation in single[:4]]
    earlier = [{"role": "user", "content": "My name is Ann."}, {"role": "assistant", "content": "Nice to meet you!"}]
    return [*single, *with_system, *([*earlier, *conversation] for conversation in single[4:8])]


@pytest.fixture(scope="module")
def theirs(sample_path: Path) -> Iterator[openai.OpenAI]:
    """OpenAI's client before ``transformers serve`` in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = str(Path(sys.executable).with_name("transformers"))
    command = [script, "serve", str(sample_path), "--device", "cpu", "--dtype", "float32", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{url}/health").raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None, "transformers serve ended"
                assert time.monotonic() < deadline
                time.sleep(0.5)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=120) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def ours(sample: LoadedModel, engine: Engine) -> Iterator[openai.OpenAI]:
    with (
        serving(ReadyModel(sample, engine)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=120) as client,
    ):
        yield client


def answer(client: openai.OpenAI, model: str, messages: Any) -> tuple[Any, ...]:
    given: Any = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 24}
    got = client.chat.completions.create(**given)
    assert got.usage is not None
    # Half a character, where the limit cut the answer, is nothing here and a replacement mark there.
    text, reason = (got.choices[0].message.content or "").rstrip("\ufffd"), got.choices[0].finish_reason
    return text, reason, got.usage.prompt_tokens, got.usage.completion_tokens


@pytest.mark.release
def test_twenty_conversations_are_answered_the_same(
    ours: openai.OpenAI, theirs: openai.OpenAI, sample_path: Path
) -> None:
    asked = conversations()
    assert len(asked) == 20
    different = []
    for messages in asked:
        mine, other = answer(ours, "sample", messages), answer(theirs, str(sample_path), messages)
        if mine != other:
            different.append((messages[-1]["content"], mine, other))
    assert not different
