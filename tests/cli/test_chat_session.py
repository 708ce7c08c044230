"""A conversation held line by line over a fake backend: questions, commands, Ctrl-C, errors."""

import asyncio
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from granite_demo.chat import conversation as conversations
from granite_demo.chat import export
from granite_demo.cli.chat_session import ChatSession
from granite_demo.errors import EngineError
from granite_demo.types.events import Finish, ReasoningDelta, TextDelta, Timings, Usage
from granite_demo.types.messages import Controls, Message, Switches
from granite_demo.types.sampling_params import SamplingParams
from tests.fakes import FakeBackend


class Sitting:
    """A session, and what it says beside its answers."""

    def __init__(self, backend: FakeBackend, runner: asyncio.Runner, typed: bool = True, system: str = "") -> None:
        self._said = io.StringIO()
        start = conversations.start(system=system, controls=Controls(thinking="full"))
        console = Console(file=self._said, width=200)
        self.session = ChatSession(backend, runner, start, SamplingParams(max_tokens=9), console, typed)

    def take(self, *lines: str) -> str:
        """What is said about these lines, and since the last ones."""
        for line in lines:
            assert self.session.take(line)
        said = self._said.getvalue()
        self._said.seek(0)
        self._said.truncate()
        return said


@pytest.fixture
def sitting(backend: FakeBackend) -> Iterator[Sitting]:
    backend.state = replace(backend.state, switches=Switches(thinking=("off", "full")))
    with asyncio.Runner() as runner:
        yield Sitting(backend, runner)


def test_an_answer_is_printed_noted_and_kept(
    backend: FakeBackend, sitting: Sitting, capsys: pytest.CaptureFixture[str]
) -> None:
    backend.script = [
        ReasoningDelta("So.", 1),
        TextDelta("42", 2),
        Finish("stop", Usage(4, 2, 1), Timings(0.1, 0.2), 9),
    ]
    said = sitting.take(" 6 times 7? ")
    assert capsys.readouterr().out == "42\n"
    assert said == "So.\n2 tokens · 0.10 s to first token · 10.0 tokens/s · finished (stop) · seed 9\n"
    question, answer = conversations.path(sitting.session.conversation)
    assert (question.content, answer.content, answer.thinking) == ("6 times 7?", "42", "So.")
    assert (answer.thinking_tokens, answer.kind, answer.made["sampling"]["seed"]) == (1, "note", 9)
    assert answer.note in said
    assert backend.requests[0].sampling.max_tokens == 9
    assert backend.requests[0].controls.thinking == "full"


def test_the_next_question_carries_the_conversation(backend: FakeBackend, sitting: Sitting) -> None:
    sitting.take("One", " /usr is what?")
    assert backend.requests[1].messages == (
        Message("user", "One"),
        Message("assistant", "Hello world!"),
        Message("user", "/usr is what?"),
    )


def test_a_pipe_gets_no_notes(backend: FakeBackend, capsys: pytest.CaptureFixture[str]) -> None:
    with asyncio.Runner() as runner:
        assert "tokens" not in Sitting(backend, runner, typed=False).take("One", "Two")
    assert capsys.readouterr().out == "Hello world!\nHello world!\n"


def test_retry_keeps_the_old_answer_beside_the_new_one(backend: FakeBackend, sitting: Sitting) -> None:
    assert "There is no question yet." in sitting.take("/retry")
    sitting.take("One")
    backend.words = ["Again"]
    sitting.take("/retry")
    assert [request.messages for request in backend.requests] == [(Message("user", "One"),)] * 2
    conversation = sitting.session.conversation
    answers = conversations.versions(conversation, str(conversation.head))
    assert [conversation.turns[turn].content for turn in answers] == ["Hello world!", "Again"]
    assert len(conversation.turns) == 3


def test_new_begins_again_with_the_same_system_prompt(backend: FakeBackend, sitting: Sitting) -> None:
    assert "is set" in sitting.take("/system  Be brief. ")
    sitting.take("One", "/new", "Two")
    assert backend.requests[1].messages == (Message("system", "Be brief."), Message("user", "Two"))
    assert backend.requests[1].controls.thinking == "full"
    assert "system prompt is removed" in sitting.take("/system")
    sitting.take("Three")
    assert backend.requests[2].messages[0].role == "user"


def test_a_system_prompt_that_disables_thinking_has_a_note(backend: FakeBackend, sitting: Sitting) -> None:
    backend.state = replace(
        backend.state, switches=Switches(thinking=("off", "full"), conflicts=(("thinking", "system"),))
    )
    assert "ignores thinking when a system prompt is set" in sitting.take("/system Be brief.")


def test_saved_conversations_can_be_imported(sitting: Sitting, tmp_path: Path) -> None:
    path = tmp_path / "a chat.json"
    assert "nothing to save" in sitting.take(f"/save {path}")
    assert "Name a file" in sitting.take("/save")
    assert not path.exists()
    sitting.take("One", "/system Be brief.", "/new", "Grüße")
    assert str(path) in sitting.take(f"/save {path}")
    first, second = export.read(path.read_text(encoding="utf-8"), path.name)
    assert [turn.content for turn in conversations.path(first)] == ["One", "Hello world!"]
    assert second == sitting.session.conversation
    assert json.loads(path.read_text(encoding="utf-8"))["format"] == export.EXPORT_FORMAT
    sitting.take(f"/save {tmp_path / 'chat.md'}")
    [read] = export.read((tmp_path / "chat.md").read_text(encoding="utf-8"), "chat.md")
    assert [turn.content for turn in conversations.path(read)] == ["Grüße", "Hello world!"]


@pytest.mark.parametrize("name", ["{folder}", "{folder}/no/such.json", "~nobody-of-this-name/a.json", "a\0b"])
def test_a_file_that_cannot_be_written_has_an_error(name: str, sitting: Sitting, tmp_path: Path) -> None:
    sitting.take("One")
    assert "cannot be written" in sitting.take(f"/save {name.format(folder=tmp_path)}")


def test_help_unknown_commands_and_leaving(backend: FakeBackend, sitting: Sitting) -> None:
    text = sitting.take("/help")
    assert [name for name in ("/new", "/retry", "/system", "/save", "/help", "/exit") if name not in text] == []
    assert not sitting.session.failed
    assert "There is no command /usr/bin." in sitting.take("/usr/bin is what?")
    assert sitting.session.failed
    assert not sitting.session.take("/exit")
    assert backend.requests == []


def test_the_greeting_names_the_model(sitting: Sitting, backend: FakeBackend) -> None:
    sitting.session.greet()
    assert "Fake model. /help" in sitting.take()


def test_an_error_is_shown_and_the_session_continues(
    backend: FakeBackend, sitting: Sitting, capsys: pytest.CaptureFixture[str]
) -> None:
    backend.error = EngineError("The engine failed.")
    assert sitting.take("One") == "The engine failed.\n"
    assert sitting.session.failed
    turn = conversations.path(sitting.session.conversation)[-1]
    assert (turn.content, turn.kind, turn.note, turn.made) == ("Hello world!", "error", "The engine failed.", {})
    backend.error = None
    sitting.take("/retry")
    assert backend.requests[1].messages == (Message("user", "One"),)
    assert capsys.readouterr().out == "Hello world!\n" * 2


# Ctrl-C


def press(backend: FakeBackend, *, times: int = 1) -> threading.Thread:
    """Presses Ctrl-C while an answer is under way."""

    def press() -> None:
        while not backend.running:
            time.sleep(0.01)
        for _ in range(times):
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    return finger


needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@needs_signals
def test_ctrl_c_stops_the_answer_and_keeps_the_session(
    backend: FakeBackend, sitting: Sitting, capsys: pytest.CaptureFixture[str]
) -> None:
    backend.words = ["word "] * 1000
    backend.delay = 0.02
    finger = press(backend)
    sitting.session._sampling = SamplingParams()
    said = sitting.take("One")
    finger.join()
    assert backend.running == 0
    assert said.endswith("· stopped\n")
    turn = conversations.path(sitting.session.conversation)[-1]
    assert turn.content.startswith("word ")
    assert len(turn.content) < 3000
    assert capsys.readouterr().out == f"{turn.content}\n"
    backend.words, backend.delay = ["Here."], 0.0
    sitting.take("Two")
    assert capsys.readouterr().out == "Here.\n"


@needs_signals
def test_a_pipe_is_left_by_ctrl_c(backend: FakeBackend) -> None:
    backend.first_delay = 30
    with asyncio.Runner() as runner:
        finger = press(backend)
        with pytest.raises(KeyboardInterrupt):
            Sitting(backend, runner, typed=False).take("One")
        finger.join()
    assert backend.running == 0


class Deaf(FakeBackend):
    """Does not stop."""

    async def stream(self, request):  # type: ignore[no-untyped-def]
        self.running += 1
        yield TextDelta("a", 1)
        await asyncio.sleep(30)


@needs_signals
def test_a_second_ctrl_c_leaves_an_answer_that_does_not_stop() -> None:
    backend = Deaf()
    began = time.monotonic()
    with asyncio.Runner() as runner:
        finger = press(backend, times=2)
        with pytest.raises(KeyboardInterrupt):
            Sitting(backend, runner).take("One")
        finger.join()
    assert time.monotonic() - began < 10
