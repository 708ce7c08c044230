"""``complete``: what is sent, what is printed where, and the exit codes."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest

from granite_demo.cli.complete import read_text, to_requests
from granite_demo.errors import ConfigurationError, EngineError, InvalidRequestError
from granite_demo.settings import Settings
from granite_demo.types.constraints import Constraint
from granite_demo.types.events import Finish, Provenance, ReasoningDelta, TextDelta, Timings, TokenScored, Usage
from granite_demo.types.logprobs import ScoredToken, TokenAlternative
from granite_demo.types.messages import Controls, Message, Switches
from granite_demo.types.sampling_params import SamplingParams
from tests.fakes import FakeBackend

Run = Callable[..., tuple[int, str, str]]

NO_SAMPLING = SamplingParams()


def stdin(text: str | bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(text if isinstance(text, bytes) else text.encode()))


def test_a_pipe_in_and_the_text_alone_out(
    backend: FakeBackend,
    opened: list[Settings],
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin("Explain quantum computing simply.\n"))
    assert run("complete", "--model", "sample", "--context", "99") == (0, "Hello world!", "")
    [request] = backend.requests
    assert request.messages == (Message("user", "Explain quantum computing simply."),)
    assert request.sampling == SamplingParams(max_tokens=512)
    assert [(settings.model, settings.context) for settings in opened] == [("sample", 99)]
    assert backend.closed.is_set()


def test_every_flag_reaches_the_request(backend: FakeBackend, opened: list[Settings], run: Run) -> None:
    backend.state = replace(backend.state, switches=Switches(thinking=("off", "full")))
    sampling = "--temperature 0.5 --top-p 0.9 --top-k 7 --min-p 0.1 --repetition-penalty 1.1 --max-tokens 2 --seed 3"
    more = ("--stop", "END", "--stop", "\n\n", "--system", "Be brief.", "--thinking", "full")
    assert run("complete", "Why?", *sampling.split(), *more) == (0, "Hello world", "")
    [request] = backend.requests
    assert request.sampling == SamplingParams(0.5, 0.9, 7, 1.1, 2, 3, ("END", "\n\n"), 0.1)
    assert request.messages == (Message("system", "Be brief."), Message("user", "Why?"))
    assert request.controls == Controls(thinking="full")


def test_raw_text_is_sent_as_it_stands(backend: FakeBackend, opened: list[Settings], run: Run) -> None:
    assert run("complete", "--raw", "Once ")[0] == 0
    assert (backend.requests[0].prompt, backend.inspected) == ("Once ", [])


def test_control_tokens_in_raw_text_are_parsed_only_with_the_flag(
    backend: FakeBackend, opened: list[Settings], run: Run
) -> None:
    run("complete", "--raw", "<|x|>")
    run("complete", "--raw", "--special-tokens", "<|x|>")
    assert [request.special_tokens for request in backend.requests] == [False, True]
    code, _, err = run("complete", "--special-tokens", "<|x|>")
    assert code
    assert "Add --raw." in err


def test_a_model_without_a_template_goes_on_with_the_text(
    backend: FakeBackend, opened: list[Settings], run: Run
) -> None:
    backend.view_error = InvalidRequestError("no template")
    code, out, err = run("complete", "Once")
    assert (code, out) == (0, "Hello world!")
    assert "has no chat template: it continues the text" in err
    assert backend.requests[0].prompt == "Once"
    for forced in (["--chat"], ["--system", "Be brief."], ["--thinking", "off"]):
        backend.requests.clear()
        run("complete", "Once", *forced)
        assert backend.requests[0].messages[-1] == Message("user", "Once")


def test_thinking_goes_to_standard_error(backend: FakeBackend, opened: list[Settings], run: Run) -> None:
    finish = Finish("stop", Usage(4, 2, 1), Timings(0.1, 0.2), 9, (5, 6), Provenance("sample"))
    backend.script = [ReasoningDelta("So.", 1), TextDelta("42", 2), finish]
    assert run("complete", "6 times 7?") == (0, "42", "So.")
    code, out, err = run("complete", "6 times 7?", "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert json.loads(out) == {
        "text": "42",
        "thinking": "So.",
        "tool_calls": [],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 4, "completion_tokens": 2, "reasoning_tokens": 1},
        "timings": {"ttft": 0.1, "total": 0.2, "reasoning": 0.0, "written": 0},
        "seed": 9,
        "provenance": {
            "model": "sample",
            "revision": "",
            "template_sha256": "",
            "prompt_sha256": "",
            "choices": {},
        },
    }


def test_a_level_that_the_model_does_not_have_has_a_note(
    backend: FakeBackend, opened: list[Settings], run: Run
) -> None:
    assert "no switch for thinking" in run("complete", "Why?", "--thinking", "full")[2]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_failed_request_is_exit_code_one(
    as_json: bool, backend: FakeBackend, opened: list[Settings], run: Run
) -> None:
    backend.error = EngineError("The engine failed.")
    code, out, err = run("complete", "Why?", *(["--json"] if as_json else []))
    assert (code, out, err) == (1, "" if as_json else "Hello world!", "granite-demo: The engine failed.")
    assert backend.closed.is_set()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_stops_and_is_exit_code_130(
    as_json: bool, backend: FakeBackend, opened: list[Settings], run: Run
) -> None:
    backend.words = ["word "] * 1000
    backend.delay = 0.01

    def press() -> None:
        while not backend.requests:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    code, out, err = run("complete", "Why?", *(["--json"] if as_json else []))
    finger.join()
    assert (code, err, backend.running) == (130, "", 0)
    assert out.startswith("" if as_json else "word ")
    assert len(out) < 5000
    assert not (as_json and out)
    assert backend.closed.is_set()


# The text


@pytest.mark.parametrize(
    ("piped", "text"), [("a\n", "a"), ("a\r\n", "a"), ("a", "a"), ("a\n\n", "a\n"), ("a \n b\n", "a \n b")]
)
def test_one_line_break_at_the_end_is_left_out(piped: str, text: str) -> None:
    assert read_text(None, stdin(piped)) == text
    assert read_text("-", stdin(piped)) == text
    assert read_text("a\n", stdin(piped)) == "a\n"


def test_input_that_is_not_text_is_an_error() -> None:
    with pytest.raises(InvalidRequestError, match="not UTF-8 text"):
        read_text(None, stdin(b"\xff"))


def test_nobody_is_left_waiting_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = stdin("typed\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    with pytest.raises(ConfigurationError, match="There is no text"):
        read_text(None, terminal)
    assert read_text("-", terminal) == "typed"


@pytest.mark.parametrize(("chat", "kinds"), [(None, ["chat", "raw"]), (True, ["chat"]), (False, ["raw"])])
def test_what_a_text_may_be_sent_as(chat: bool | None, kinds: list[str]) -> None:
    requests = to_requests("Once", chat, " ", Controls(), NO_SAMPLING)
    assert ["raw" if request.prompt else "chat" for request in requests] == kinds


# The real thing


@pytest.mark.release
def test_the_sample_answers_a_pipe(gguf_path: Path) -> None:
    def pipe(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        flags = ("--model", "sample", "--device", "cpu", "--max-tokens", "8")
        command = [sys.executable, "-m", "granite_demo", "complete", *flags, *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done

    streamed = pipe("What is the capital of Germany?\n")
    assert "Berlin" in streamed.stdout
    assert not streamed.stdout.endswith("\n")
    answer: dict[str, Any] = json.loads(pipe("What is the capital of Germany?\n", "--json").stdout)
    assert (answer["text"], answer["provenance"]["model"]) == (streamed.stdout, "sample")
    assert len(answer["provenance"]["template_sha256"]) == 64
    raw = json.loads(pipe("Once upon a", "--json", "--raw").stdout)
    assert raw["text"].startswith(" time")
    assert (raw["usage"]["completion_tokens"], raw["provenance"]["template_sha256"]) == (8, "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--regex", "[0-9]+"], Constraint("regex", pattern="[0-9]+")),
        (["--choice", "yes", "--choice", "no"], Constraint("choice", choices=("yes", "no"))),
        (["--schema", "{file}"], Constraint.from_schema({"type": "object"})),
        ([], None),
    ],
)
def test_what_the_answer_has_to_be_is_sent(
    backend: FakeBackend,
    opened: list[Settings],
    run: Run,
    tmp_path: Path,
    arguments: list[str],
    expected: Constraint | None,
) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object"}')
    run("complete", "Hello", *(argument.replace("{file}", str(file)) for argument in arguments))
    assert backend.requests[-1].sampling.constraint == expected


def test_a_gap_is_filled(backend: FakeBackend, opened: list[Settings], run: Run) -> None:
    run("complete", "--raw", "def f(", "--suffix", "    return a")
    assert (backend.requests[-1].prompt, backend.requests[-1].suffix) == ("def f(", "    return a")


def test_log_probabilities_are_in_the_json(backend: FakeBackend, opened: list[Settings], run: Run) -> None:
    token = ScoredToken(1, "Hi", -0.5, -0.4, 1.0, (TokenAlternative(2, "Ho", -1.5, -inf),))
    backend.script = [TokenScored(token), TextDelta("Hi", 1), Finish("stop", Usage(5, 1), Timings(0.1, 0.2))]
    _, out, _ = run("complete", "Hello", "--json", "--logprobs", "1")
    assert backend.requests[-1].sampling.logprobs == 1
    # JSON has no -inf, which stands for what a greedy choice leaves out.
    assert json.loads(out, parse_constant=pytest.fail)["tokens"][0]["alternatives"] == [
        {"id": 2, "text": "Ho", "logprob": -1.5, "sampled": None}
    ]
