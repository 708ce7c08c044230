"""``chat``: where lines come from, when it is left, and the exit codes."""

import io
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from granite_demo.chat import export
from granite_demo.cli import chat as chatting
from granite_demo.errors import EngineError, InvalidRequestError
from granite_demo.settings import Settings
from granite_demo.types.messages import Message
from granite_demo.types.sampling_params import SamplingParams
from tests.fakes import FakeBackend

Chat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, opened: list[Settings], run: Chat) -> Chat:
    """Runs the command with a text in its pipe."""

    def chat(piped: str | bytes, *arguments: str) -> tuple[int, str, str]:
        data = piped if isinstance(piped, bytes) else piped.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        return run("chat", *arguments)

    return chat


def test_one_answer_for_each_line_of_a_pipe(backend: FakeBackend, chat: Chat) -> None:
    assert chat("One\n\n \r\nTwo\r\nThree", "--max-tokens", "2", "--seed", "4") == (0, "Hello world\n" * 3, "")
    assert [request.messages[-1].content for request in backend.requests] == ["One", "Two", "Three"]
    assert len(backend.requests[2].messages) == 5
    assert backend.requests[0].sampling == SamplingParams(max_tokens=2, seed=4)
    assert backend.closed.is_set()


def test_system_thinking_and_commands(backend: FakeBackend, chat: Chat, tmp_path: Path) -> None:
    lines = f"One\n/save {tmp_path / 'chat.json'}\n/exit\nTwo\n"
    code, out, err = chat(lines, "--system", "Be brief.", "--thinking", "full")
    assert (code, out) == (0, "Hello world!\n")
    assert "no switch for thinking" in err
    [request] = backend.requests
    assert request.messages == (Message("system", "Be brief."), Message("user", "One"))
    assert request.controls.thinking == "full"
    assert len(export.read((tmp_path / "chat.json").read_text(encoding="utf-8"), "chat.json")) == 1


def test_a_failure_in_a_pipe_sets_the_exit_code_and_the_next_line_runs(backend: FakeBackend, chat: Chat) -> None:
    backend.error = EngineError("The engine failed.")
    code, _, err = chat("One\nTwo\n")
    assert (code, err.count("The engine failed."), len(backend.requests)) == (1, 2, 2)
    assert chat(b"\xff\n")[::2] == (1, "granite-demo: Standard input is not UTF-8 text.")


def test_a_model_without_a_template_cannot_chat(backend: FakeBackend, chat: Chat) -> None:
    backend.view_error = InvalidRequestError("no template")
    code, out, err = chat("One\n")
    assert (code, out) == (1, "")
    assert "it has no chat template. Use granite-demo complete." in err


# At a terminal


def typed(*answers: str | type[BaseException]) -> tuple[list[str], str, bool]:
    """The lines that come of what is typed, what is said, and whether it was left by Ctrl-C."""
    said = io.StringIO()
    left = list(answers)
    lines: list[str] = []

    def ask() -> str:
        answer = left.pop(0)
        if isinstance(answer, str):
            return answer
        raise answer

    try:
        for line in chatting.lines_typed(Console(file=said), ask):
            lines.append(line)
    except KeyboardInterrupt:
        return lines, said.getvalue(), True
    return lines, said.getvalue(), False


def test_ctrl_d_and_ctrl_c_at_the_prompt() -> None:
    assert typed("One", "a\ud800b", EOFError) == (["One", "a\ufffdb"], "\n", False)
    hint = "\nTo leave, press Ctrl-C again or Ctrl-D, or type /exit.\n"
    assert typed(KeyboardInterrupt, KeyboardInterrupt) == ([], hint, True)
    assert typed(KeyboardInterrupt, "One", KeyboardInterrupt, EOFError) == (["One"], f"{hint}{hint}\n", False)


def test_a_prompt_stays_out_of_redirected_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt="": f"asked with {prompt!r}")
    said = io.StringIO()
    assert chatting.ask_for_line(Console(file=said))() == "asked with ''"
    assert said.getvalue() == "> "
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert chatting.ask_for_line(Console(file=said))() == "asked with '> '"
    assert capsys.readouterr().out == ""


@pytest.mark.release
@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal")
def test_the_sample_chats_at_a_terminal(gguf_path: Path, tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "granite_demo",
        "chat",
        "--model",
        "sample",
        "--device",
        "cpu",
        "--context",
        "4096",
    ]
    seen = ""

    def wait_for(words: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while words not in seen:
            assert select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0], seen
            seen += os.read(ours, 4096).decode(errors="replace")
        seen = seen.partition(words)[2]

    def enter(line: str) -> None:
        wait_for("> ")  # before it, the terminal echoes each line once more
        os.write(ours, f"{line}\r".encode())

    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        hung = threading.Timer(150, process.kill)
        hung.start()
        wait_for("/help lists the commands")
        enter("What is the capital of Germany?")
        wait_for("Berlin")
        wait_for("finished (stop)")
        enter("Write a very long story about a sailor and the sea.")
        wait_for("sea.")
        wait_for(" the ")
        os.killpg(process.pid, signal.SIGINT)
        wait_for("stopped")
        enter(f"/save {tmp_path / 'chat.json'}")
        wait_for("Saved")
        wait_for("> ")
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
        hung.cancel()
    os.close(ours)
    [conversation] = export.read((tmp_path / "chat.json").read_text(encoding="utf-8"), "chat.json")
    assert [turn.role for turn in conversation.turns.values()] == ["user", "assistant"] * 2
