"""The page, the API and the command line in the environment of requirements-cpu.txt, with the sample model."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from granite_demo.models.installation import INSTALL

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".small" / "bin" / "python"
SECONDS = 120
pytestmark = pytest.mark.small


def run(*arguments: str) -> tuple[int, str]:
    """The exit code and the output of a command, its white space joined."""
    done = subprocess.run([PYTHON, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert "Traceback" not in done.stderr
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_torch_is_not_installed() -> None:
    code = "from importlib.util import find_spec; print(*map(find_spec, ('torch', 'transformers', 'safetensors')))"
    assert run("-c", code) == (0, "None None None")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server over the sample, its model ready."""
    log = tmp_path_factory.mktemp("small") / "log"
    with log.open("w") as output:
        process = subprocess.Popen([PYTHON, "app.py", "--model", "sample", "--port", "0"], cwd=ROOT, stderr=output)
    try:
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(r"is at (http://\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        with httpx.Client(base_url=found[1], timeout=SECONDS) as client:
            yield client
    finally:
        process.terminate()
        process.wait(SECONDS)
    assert "Traceback" not in log.read_text()


def test_the_page_is_there(api: httpx.Client) -> None:
    assert "granite-demo" in api.get("/").raise_for_status().text


def test_chat_streams(api: httpx.Client) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    body = {"messages": messages, "max_tokens": 8, "temperature": 0, "stream": True}
    lines = api.post("/v1/chat/completions", json=body).raise_for_status().text.split("data: ")[1:-1]
    deltas = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines]
    assert len([delta for delta in deltas if delta]) > 1
    assert "Hello" in "".join(deltas)


def test_a_schema_is_followed(api: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}}, "required": ["age"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema | {"maxProperties": 1}}}
    body = {"messages": [{"role": "user", "content": "How old?"}], "max_tokens": 40, "response_format": wanted}
    answer = api.post("/v1/chat/completions", json=body).raise_for_status().json()
    assert json.loads(answer["choices"][0]["message"]["content"]).keys() == {"age"}


def test_a_text_is_scored(api: httpx.Client) -> None:
    body = {"prompt": "The sky is blue", "echo": True, "max_tokens": 0, "logprobs": 1}
    scores = api.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]["logprobs"]
    assert scores["tokens"] == ["The", " sky", " is", " blue"]
    assert all(logprob < 0 for logprob in scores["token_logprobs"][1:])


def test_the_command_line_answers() -> None:
    text = "The capital of France is"
    code, shown = run("-m", "granite_demo", "complete", text, "--raw", "--model", "sample", "--max-tokens", "4")
    assert code == 0
    assert "Paris" in shown


@pytest.mark.parametrize(
    ("arguments", "subject"),
    [
        ("complete Hi --engine dynamic", "The engine dynamic"),
        ("complete Hi --quantization nf4", "The quantization nf4"),
        ("compare Hi", "A comparison of precisions"),
        ("bench", "The benchmark of this machine"),
        ("serve --port 0 --engine zerogpu", "The engine zerogpu"),
    ],
)
def test_what_needs_torch_says_so(arguments: str, subject: str) -> None:
    code, shown = run("-m", "granite_demo", *arguments.split(), "--model", "sample")
    assert code == 2
    assert shown.endswith(f"{subject} needs torch and transformers, which are not installed. Run: {INSTALL}")
