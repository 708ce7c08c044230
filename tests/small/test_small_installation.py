"""The page, the API and the command line in the environment of requirements-cpu.txt, with the sample model."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from granite_demo.models.installation import INSTALL
from tests.browser.chromium import launch_args

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".small" / "bin" / "python"
SECONDS = 120
MISSING = f"needs torch and transformers, which are not installed. Run: {INSTALL}"
NEEDS_TORCH = (
    "engine.batching.",
    "engine.decoder_layers",
    "engine.factory",
    "engine.interleaved.",
    "engine.kernels.",
    "engine.sampling.",
    "engine.zerogpu",
    "loading.cpu_benchmark",
    "loading.float32_prefill",
    "loading.load",
    "loading.placement",
)
"""The beginnings of the names of modules that run models of transformers."""
IMPORT_ALL = f"""
import importlib, pkgutil, granite_demo
for module in pkgutil.walk_packages(granite_demo.__path__, "granite_demo."):
    name = module.name.removeprefix("granite_demo.")
    if name != "__main__" and not (name.startswith({NEEDS_TORCH}) and name != "loading.loaded_model"):
        importlib.import_module(module.name)
"""
pytestmark = pytest.mark.small


def run(*arguments: str) -> tuple[int, str]:
    """The exit code and the output of a command, its white space joined."""
    done = subprocess.run([PYTHON, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert "Traceback" not in done.stderr
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_torch_is_not_installed() -> None:
    code = "from importlib.util import find_spec; print(*map(find_spec, ('torch', 'transformers', 'safetensors')))"
    assert run("-c", code) == (0, "None None None")


def test_only_the_modules_that_run_transformers_need_torch() -> None:
    assert run("-c", IMPORT_ALL) == (0, "")


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


def test_chat_streams(api: httpx.Client) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    body = {"messages": messages, "max_tokens": 8, "temperature": 0, "stream": True}
    lines = api.post("/v1/chat/completions", json=body).raise_for_status().text.split("data: ")[1:-1]
    deltas = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines]
    assert len([delta for delta in deltas if delta]) > 1
    assert "Hello" in "".join(deltas)


@pytest.mark.parametrize("seed", range(4))
def test_a_schema_is_followed(seed: int, api: httpx.Client) -> None:
    numbers = {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in ("age", "size")}
    schema = {"type": "object", "properties": numbers, "required": [*numbers], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    messages = [{"role": "user", "content": "How old?"}]
    body = {"messages": messages, "max_tokens": 40, "temperature": 1, "seed": seed, "response_format": wanted}
    answer = api.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert json.loads(answer.json()["choices"][0]["message"]["content"]).keys() == numbers.keys()


def test_a_text_is_scored(api: httpx.Client) -> None:
    body = {"prompt": "The sky is blue", "echo": True, "max_tokens": 0, "logprobs": 1}
    scores = api.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]["logprobs"]
    assert scores["tokens"] == ["The", " sky", " is", " blue"]
    assert all(logprob < 0 for logprob in scores["token_logprobs"][1:])


def test_a_tool_is_called(api: httpx.Client) -> None:
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
    body = {"messages": [{"role": "user", "content": "What time is it?"}], "max_tokens": 40, "tools": [tool]}
    answer = api.post("/v1/chat/completions", json={**body, "tool_choice": "required"})
    assert answer.status_code in (200, 400), answer.text  # the sample has no form of calls


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/models", "/v1/models/sample"])
def test_the_other_routes_answer(path: str, api: httpx.Client) -> None:
    assert api.get(path).raise_for_status().content


@pytest.fixture(scope="module")
def page(api: httpx.Client) -> Iterator[Page]:
    """The page in a browser. Its scripts must not fail."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_args(playwright))
        page, failures = browser.new_page(), list[str]()
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(str(api.base_url))
        expect(page.locator("#model-status")).to_contain_text("SmolLM2 135M sample", timeout=60_000)
        yield page
        browser.close()
    assert not failures


def test_the_page_answers(page: Page) -> None:
    page.get_by_role("tab", name="Chat").click()
    box = page.locator("#message textarea")
    box.fill("Say hello.")
    box.press("Enter")
    expect(page.locator("#chatbot .act.retry")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Prompt X-ray").click()
    page.get_by_role("button", name="Show the prompt").click()
    expect(page.locator("#xray-text textarea")).to_have_value(re.compile("Say hello[.]"))


def test_the_page_completes_and_scores_a_text(page: Page) -> None:
    page.get_by_role("tab", name="Completion").click()
    page.locator("#prompt textarea").fill("The capital of France is")
    page.locator("#run").click()
    expect(page.locator("#token-view .tokens b").nth(6)).to_be_visible(timeout=60_000)
    page.get_by_role("tab", name="Score").click()
    page.locator("#score-text textarea").fill("The sky is blue.")
    page.locator("#score-run").click()
    expect(page.locator("#score-figures")).to_contain_text("erplexity", timeout=60_000)


def test_the_tab_of_precisions_says_what_it_needs(page: Page) -> None:
    page.get_by_role("tab", name="Completion").click()
    page.get_by_role("tab", name="Precision").click()
    expect(page.get_by_text(f"A comparison of precisions {MISSING}").locator("visible=true").first).to_be_visible()


def test_the_settings_show_the_model_and_say_what_an_option_needs(page: Page) -> None:
    page.get_by_role("tab", name="Settings").click()
    expect(page.locator("#facts")).to_contain_text("Q4_1")


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
        ("bench --suite limit", "The benchmark of fused layers and tensor parallelism"),
        ("pull sample --engine dynamic", "The engine dynamic"),
        ("serve --port 0 --engine zerogpu", "The engine zerogpu"),
    ],
)
def test_what_needs_torch_says_so(arguments: str, subject: str) -> None:
    named = () if "pull" in arguments else ("--model", "sample")
    code, shown = run("-m", "granite_demo", *arguments.split(), *named)
    assert code == 2
    assert shown.endswith(f"{subject} {MISSING}")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("doctor", "the small one without torch (requirements-cpu.txt)"),
        ("models", "granite-4.0-350m"),
        ("fits granite-4.0-350m", "int4"),
        ("pull sample", "Q4_1.gguf"),
        ("score Hello,_hello --model sample", "perplexity"),
        (
            "bench --suite decode --users 1 --prompts 32 --tokens 8 --rounds 1 --model sample",
            "the bare loop of llama.cpp",
        ),
    ],
)
def test_the_other_commands_work(arguments: str, expected: str) -> None:
    code, shown = run("-m", "granite_demo", *arguments.split())
    assert code == 0
    assert expected in shown
