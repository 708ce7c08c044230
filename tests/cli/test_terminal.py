"""What goes to which stream, what a terminal must not obey, and what the log must not show."""

import io
import json
import logging
import sys
from math import inf, nan

import pytest
from rich.console import Console

from granite_demo.cli.terminal import (
    LoadReporter,
    Output,
    Printer,
    _Masked,
    can_chat,
    print_json,
    print_table,
    say,
    standard_output,
    thinking_note,
)
from granite_demo.errors import EngineError, InvalidRequestError
from granite_demo.types.events import Finish, Queued, ReasoningDelta, StreamEvent, TextDelta, Timings, ToolCalled, Usage
from granite_demo.types.messages import Switches, Thinking, ToolCall
from granite_demo.types.model_status import ModelStatus
from granite_demo.types.requests import GenerationRequest
from tests.fakes import READY, FakeBackend

REQUEST = GenerationRequest(prompt="Once")
FINISH = Finish("stop", Usage(1, 2), Timings(0.1, 0.2))


class Terminal(io.StringIO):
    """What takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


async def printed(
    backend: FakeBackend,
    monkeypatch: pytest.MonkeyPatch,
    events: list[StreamEvent],
    terminal: bool,
    quiet: bool = False,
) -> tuple[str, str]:
    """Standard output and standard error after one answer."""
    out = Terminal() if terminal else io.StringIO()
    err = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    backend.script = [*events, FINISH]
    printer = Printer(Console(file=err, force_terminal=terminal, width=40), quiet=quiet)
    await printer.stream(backend, REQUEST)
    printer.end()
    assert printer.over
    assert backend.running == 0
    return out.getvalue(), err.getvalue()


async def test_the_rest_of_an_answer_that_fails_is_printed_and_kept(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", out := io.StringIO())
    backend.error, backend.held = EngineError("No more memory."), [TextDelta(" <", 4), FINISH]
    printer = Printer(Console(file=io.StringIO()))
    with pytest.raises(EngineError):
        await printer.stream(backend, REQUEST)
    assert out.getvalue() == printer.answer.text == "Hello world! <"
    assert printer.answer.finish == FINISH


THOUGHT: list[StreamEvent] = [
    Queued(1),
    ReasoningDelta("So, [bold]", 1),
    ReasoningDelta(" then\n", 2),
    ReasoningDelta("x" * 50, 3),
    TextDelta("", 4),
    TextDelta("Four", 5),
    TextDelta(".\n\ttwo", 6),
]


async def test_a_pipe_gets_the_text_alone(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = await printed(backend, monkeypatch, THOUGHT, terminal=False)
    assert out == "Four.\n\ttwo"
    assert err == f"So, [bold] then\n{'x' * 50}\n"


async def test_a_terminal_gets_dimmed_thinking_and_a_line_end(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = await printed(backend, monkeypatch, THOUGHT, terminal=True)
    assert out == "Four.\n\ttwo\n"
    assert err.startswith("\x1b[2mSo, [bold]\x1b[0m")


async def test_a_terminal_obeys_nothing_in_an_answer(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[StreamEvent] = [ReasoningDelta("\x1b[2J", 1), TextDelta("a\x1b]0;\x07\r\x9bé", 2)]
    out, err = await printed(backend, monkeypatch, events, terminal=True)
    assert out == "a\\x1b]0;\\x07\\r\\x9bé\n"
    assert "\\x1b[2J" in err
    assert (await printed(backend, monkeypatch, events, terminal=False))[0] == "a\x1b]0;\x07\r\x9bé"


async def test_quiet_keeps_the_answer_and_prints_nothing(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await printed(backend, monkeypatch, THOUGHT, terminal=True, quiet=True) == ("", "")


async def test_a_call_is_printed(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[StreamEvent] = [TextDelta("I look.", 1), ToolCalled(ToolCall("look", '{"at": 1}'))]
    assert (await printed(backend, monkeypatch, events, terminal=False))[0] == 'I look.\nlook {"at": 1}'


async def test_an_answer_that_breaks_off_is_an_error(backend: FakeBackend, capsys: pytest.CaptureFixture[str]) -> None:
    backend.script = [TextDelta("a", 1)]
    with pytest.raises(EngineError, match="before it was finished"):
        await Printer(Console(stderr=True)).stream(backend, REQUEST)
    assert capsys.readouterr().out == "a"


async def test_whether_a_model_can_chat(backend: FakeBackend) -> None:
    assert await can_chat(backend)
    backend.view_error = InvalidRequestError("no template")
    assert not await can_chat(backend)


def test_numbers_that_json_does_not_have_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": -inf, "b": [nan, (1.5, inf)], "c": "x"})
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=pytest.fail) == {"a": None, "b": [None, [1.5, None]], "c": "x"}
    assert out.count("\n") == 1


BOTH = Switches(thinking=("off", "full"), conflicts=(("thinking", "system"),))


@pytest.mark.parametrize(
    ("switches", "thinking", "system", "words"),
    [
        (Switches(), None, False, ""),
        (BOTH, "full", False, ""),
        (BOTH, "full", True, "ignores thinking when a system prompt is set"),
        (BOTH, "low", False, "thinking levels are off, full"),
        (Switches(), "off", False, "no switch for thinking"),
    ],
)
def test_a_level_without_effect_has_a_note(
    switches: Switches, thinking: Thinking | None, system: bool, words: str
) -> None:
    note = thinking_note(switches, thinking, system)
    assert words in note
    assert bool(words) == bool(note)


# Logs and progress


def test_a_bar_with_stage_and_detail_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    reporter = LoadReporter(console)
    reporter(ModelStatus("sample", "downloading", 0.34, "31 of 93 MB"))
    reporter(ModelStatus("sample", "downloading", 0.68, "62 of 93 MB"))
    reporter(READY)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "downloading" in text
    assert "62 of 93 MB" in text


def test_no_bar_without_a_terminal_but_a_line_for_each_stage(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO(), width=100)
    reporter = LoadReporter(console)
    with caplog.at_level(logging.INFO, "granite_demo"):
        for status in (
            ModelStatus("sample", "downloading", 0.1, "9 of 93 MB"),
            ModelStatus("sample", "downloading", 0.2, "18 of 93 MB"),
            ModelStatus("sample", "loading"),
            READY,
        ):
            reporter(status)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().strip() == ""
    assert caplog.messages == ["sample: downloading", "sample: loading", "Device: cpu (a test)", "Fake model is ready."]


def test_a_failure_is_an_error_line(caplog: pytest.LogCaptureFixture) -> None:
    LoadReporter(Console(file=io.StringIO()))(ModelStatus("sample", "failed", None, "No network."))
    assert caplog.messages == ["sample is not ready. No network."]


def test_t15_t16_a_log_line_has_no_secret_and_no_control_characters() -> None:
    formatter = _Masked(("a+key", ""))
    try:
        raise ValueError("hf_" + "abcDEF123" * 4)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 1, "with %s\r\x1b[2K", ("a+key",), sys.exc_info())
    text = formatter.format(record)
    assert "a+key" not in text
    assert "hf_abc" not in text
    assert "with ***\\r\\x1b[2K\nTraceback" in text


def failed(text: str) -> logging.LogRecord:
    """A record of an error whose cause has a cause; each of them says ``text``."""
    try:
        try:
            try:
                raise KeyError(text)
            except KeyError:
                raise ValueError(text)  # noqa: B904
        except ValueError as error:
            raise RuntimeError(text) from error
    except RuntimeError as error:
        return logging.LogRecord(
            "uvicorn.error", logging.ERROR, "", 0, "It failed.", (), (type(error), error, error.__traceback__)
        )


def test_m9_a_traceback_has_no_text_of_a_visitor() -> None:
    record = failed("canary of a visitor")
    assert _Masked(()).format(record).count("canary") >= 3
    text = _Masked((), quoting=False).format(record)
    assert "canary" not in text.replace('failed("canary of a visitor")', "")
    for part in ("It failed.", "KeyError", "ValueError", "RuntimeError", "test_terminal.py"):
        assert part in text


OSC, CSI, C1 = "\x1b]0;title\x07", "\x1b[2J\x1b[31m", "\x9b31m\x90"


@pytest.mark.parametrize("terminal", [True, False])
def test_l2_no_console_prints_a_sequence_for_the_terminal(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    name = f"evil{OSC}{CSI}{C1}\r\u202e"
    print_table(("model", "server"), [(name, "http://x")], left=("model",))
    standard_output().print(name)
    console = Output(file=out, force_terminal=False)
    console.print(name, markup=False)
    say(console, name)
    text = out.getvalue()
    assert text.count("evil") == 4
    assert "\\x1b" in text
    for sequence in ("\x1b]", "\x1b[2J", "\x1b[31m", "\x9b", "\x90", "\r", "\u202e", "\x07"):
        assert sequence not in text, repr(sequence)
