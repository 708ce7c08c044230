"""The API over the real sample model: OpenAI's client, and ``transformers chat``."""

import re
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
from tests.sample_server import serving

CAPITAL: Any = [{"role": "user", "content": "What is the capital of Germany?"}]


@pytest.fixture(scope="module")
def url(ready_sample: ReadyModel) -> Iterator[str]:
    with serving(ready_sample) as url:
        deadline = time.monotonic() + 60
        while httpx.get(f"{url}/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


def test_the_sample_answers(client: openai.OpenAI) -> None:
    given: Any = {"model": "sample", "messages": CAPITAL, "temperature": 0, "max_tokens": 30}
    whole = client.chat.completions.create(**given)
    assert "Berlin" in (whole.choices[0].message.content or "")
    assert whole.choices[0].finish_reason == "stop"
    options: Any = {"include_usage": True}
    *chunks, last = client.chat.completions.create(**given, stream=True, stream_options=options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert last.usage == whole.usage


def test_its_tokens_have_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="sample", messages=CAPITAL, temperature=0, max_tokens=5, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert answer.usage is not None
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == answer.usage.completion_tokens == 5
    for token in logprobs.content:
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
        assert token.token == token.top_logprobs[0].token


def test_it_goes_on_with_a_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="sample", prompt="One, two, three,", temperature=0, max_tokens=6)
    assert "four" in answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"


def test_a_prompt_that_does_not_fit_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="sample", prompt="word " * 20_000)
    assert refused.value.code == "context_length_exceeded"


def test_a_token_that_is_none_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="is not a token id"):
        client.completions.create(model="sample", prompt=[999_999])


def test_who_goes_frees_the_engine(url: str, ready_sample: ReadyModel) -> None:
    body = {"prompt": "Once", "max_tokens": 2000, "stream": True, "logit_bias": {}}
    with httpx.stream("POST", f"{url}/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    deadline = time.monotonic() + 1
    while ready_sample.engine.stats().running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.release
def test_transformers_chat_holds_a_conversation(url: str, tmp_path: Path) -> None:
    script = str(Path(sys.executable).with_name("transformers"))
    command = [script, "chat", "sample", url, "do_sample=False", "max_new_tokens=40", "--save-folder", str(tmp_path)]
    asked = "What is the capital of Germany?\nWhat is the capital of Japan?\n!exit\n"
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Berlin" in done.stdout
    assert "Tokyo" in re.sub(r"\s+", " ", done.stdout.split("Japan")[-1])
