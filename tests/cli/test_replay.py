"""Saved answers made again over a fake backend: the same, differing, and what has changed since."""

import asyncio
import io
import json
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from granite_demo.backends.model_manager import ReadyModel
from granite_demo.chat import bundle
from granite_demo.chat import conversation as conversations
from granite_demo.chat.bundle import Bundle, versions
from granite_demo.cli.main import main
from granite_demo.cli.replay import Outcome, read_file, replay, report, run_replay, settings_for
from granite_demo.errors import ConfigurationError, EngineError, UnknownModelError
from granite_demo.settings import Settings
from granite_demo.types.events import (
    Finish,
    Provenance,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
    Timings,
    ToolCalled,
    Usage,
)
from granite_demo.types.messages import Message, ToolCall
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams
from tests.fakes import FakeBackend
from tests.sample_server import backend_over

COMMIT = "0123456789abcdef" * 2 + "01234567"
Run = Callable[..., tuple[int, str, str]]

TRACE = Provenance("sample", "", "t" * 64, "p" * 64, {"Device": "cpu", "Precision": "float32"})
FINISH = Finish("stop", Usage(4, 3), Timings(0.1, 0.2), 9, (5, 6, 0), TRACE)
CALL = ToolCall("look", "{}")


def script(text: str = "It is 42.", **changes: Any) -> list[StreamEvent]:
    half = len(text) // 2
    deltas = [TextDelta(text[:half], 2), TextDelta(text[half:], 3)]
    return [ReasoningDelta("So.", 1), *deltas, ToolCalled(CALL), replace(FINISH, **changes)]


def saved(
    finish: Finish | None = FINISH, text: str = "It is 42.", thinking: str = "So.", called: bool = True
) -> dict[str, Any]:
    """An answer of ``script`` as its file."""
    conversation = conversations.add(conversations.start(), "user", content="6 times 7?")
    request = GenerationRequest(conversations.to_messages(conversation), sampling=SamplingParams(temperature=0.5))
    calls = (ToolCall(name=CALL.name, arguments=CALL.arguments),) if called else ()
    made = bundle.made(request, finish)
    values: dict[str, Any] = {"content": text, "thinking": thinking, "calls": calls, "made": made}
    conversation = conversations.add(conversation, "assistant", **values)
    return bundle.bundle(conversation, str(conversation.head))


def read(value: dict[str, Any]) -> Bundle:
    return bundle.read_bundle(json.dumps(value))


async def again(backend: FakeBackend, events: list[StreamEvent], finish: Finish = FINISH) -> Outcome:
    backend.script = events
    return await replay(backend, read(saved(finish)))


async def test_an_equal_answer(backend: FakeBackend) -> None:
    outcome = await again(backend, script())
    assert outcome == Outcome("tokens", 3, None)
    assert report(outcome) == ["The answer is the same: 3 tokens."]
    assert backend.requests[0].sampling == SamplingParams(temperature=0.5, seed=9)
    assert backend.running == 0


@pytest.mark.parametrize(("ids", "first"), [((5, 7, 0), 1), ((5,), 1), ((5, 6, 0, 8), 3), ((4, 6, 0), 0)])
async def test_the_first_different_token(backend: FakeBackend, ids: tuple[int, ...], first: int) -> None:
    outcome = await again(backend, script("It is 43.", token_ids=ids))
    assert (outcome.equal, outcome.compared, outcome.first) == (False, "tokens", first)
    assert (outcome.recorded, outcome.now) == ("So.\nIt is 42.\nlook {}", "So.\nIt is 43.\nlook {}")
    assert report(outcome)[:3] == [
        f"The answer differs from token {first + 1} on. The saved answer has 3 tokens.",
        "Then: So.\\nIt is 42.\\nlook {}",
        "Now:  So.\\nIt is 43.\\nlook {}",
    ]


@pytest.mark.parametrize("lacking", ["saved", "now"])
async def test_without_tokens_the_texts_are_compared(backend: FakeBackend, lacking: str) -> None:
    finish = replace(FINISH, token_ids=()) if lacking == "saved" else FINISH
    ids = () if lacking == "now" else FINISH.token_ids
    assert (await again(backend, script(token_ids=ids), finish)).equal
    outcome = await again(backend, script("It is 43.", token_ids=ids), finish)
    assert (outcome.compared, outcome.first, outcome.count) == ("characters", 11, 21)


async def test_thinking_and_calls_are_part_of_the_text(backend: FakeBackend) -> None:
    for left_out in (ReasoningDelta, ToolCalled):
        events = [event for event in script() if type(event) is not left_out]
        assert not (await again(backend, events, replace(FINISH, token_ids=()))).equal


async def test_a_stopped_answer_is_compared_by_the_tokens_that_it_has(backend: FakeBackend) -> None:
    stopped = replace(FINISH, reason="stopped", token_ids=(5, 6))
    backend.script = script()
    outcome = await replay(backend, read(saved(stopped, "It is 4", called=False)))
    assert (outcome.compared, outcome.count, outcome.equal) == ("tokens", 2, True)
    assert [words for words in outcome.differences if "seed" in words] == []
    backend.script = script(token_ids=(5, 7, 0))
    outcome = await replay(backend, read(saved(stopped, "It is 4", called=False)))
    assert (outcome.compared, outcome.first) == ("tokens", 1)
    # The held-back beginning of a call is text where it stopped, and no difference.
    backend.script = script()
    outcome = await replay(backend, read(saved(stopped, "It is 42.\n<tool_ca", called=False)))
    assert (outcome.equal, outcome.recorded) == (True, "")


async def test_the_same_tokens_with_another_text_are_the_same_answer(backend: FakeBackend) -> None:
    outcome = await again(backend, script("It is  42."))
    assert outcome.equal
    assert outcome.differences == ("The tokens are the same, but they give another text.",)


async def test_long_texts_are_shown_around_the_place(backend: FakeBackend) -> None:
    backend.script = script("x" * 200 + "b" + "y" * 200, token_ids=(1,))
    outcome = await replay(backend, read(saved(text="x" * 200 + "a" + "y" * 200)))
    assert outcome.recorded == f"…{'x' * 40}a{'y' * 39}…"
    assert outcome.now == f"…{'x' * 40}b{'y' * 39}…"


async def test_what_has_changed_is_listed(backend: FakeBackend) -> None:
    trace = Provenance("other", "def", "u" * 64, "q" * 64, {"Device": "cuda:0", "Precision": "float32"})
    value = saved()
    value["made"]["versions"]["torch"] = "1.0"
    value["made"]["versions"]["unheard-of"] = "2"
    backend.script = script(reason="length", provenance=trace)
    prompt, *others = (await replay(backend, read(value))).differences
    assert prompt.startswith("The prompt has another hash")
    assert others == [
        "The chat template has another hash.",
        "Model: sample then, other now.",
        "Device: cpu then, cuda:0 now.",
        f"Torch: 1.0 then, {versions()['torch']} now.",
        "Finish reason: stop then, length now.",
    ]


async def test_what_a_side_does_not_know_is_no_difference(backend: FakeBackend) -> None:
    assert (await again(backend, script(provenance=None))).differences == ()
    assert (await again(backend, script(), replace(FINISH, provenance=None))).differences == ()


async def test_an_answer_that_breaks_off_is_no_answer(backend: FakeBackend) -> None:
    with pytest.raises(EngineError, match="before it was finished"):
        await again(backend, script()[:-1])


HALVES = [("", "", False), ("", "S", False), ("", "So.", False), ("It is", "So.", False), ("It is 42.", "So.", True)]


@pytest.mark.parametrize(("text", "thinking", "called"), HALVES)
async def test_a_stopped_answer_is_compared_as_far_as_it_went(
    backend: FakeBackend, text: str, thinking: str, called: bool
) -> None:
    backend.script = script("It is 42. Or so.")
    outcome = await replay(backend, read(saved(None, text, thinking, called)))
    assert (outcome.compared, outcome.equal) == ("characters", True)
    stopped, seed = outcome.differences
    assert stopped == "The saved answer was stopped, or ended with an error: the comparison stops at its end."
    assert seed == "The seed of the saved answer is unknown, so the new one has another seed."


@pytest.mark.parametrize(
    ("text", "thinking", "called", "first"),
    [("", "Sa", False, 1), ("It was", "So.", False, 7), ("It is", "", False, 0), ("It is 42.", "So.", True, None)],
)
async def test_a_stopped_answer_can_differ(
    backend: FakeBackend, text: str, thinking: str, called: bool, first: int | None
) -> None:
    # Where all of the text came again, the call didn't.
    backend.script = [event for event in script() if first is not None or type(event) is not ToolCalled]
    outcome = await replay(backend, read(saved(None, text, thinking, called)))
    assert not outcome.equal
    assert outcome.first == (first if first is not None else len("So.\nIt is 42."))


async def test_the_note_of_the_file_is_shown_first(backend: FakeBackend) -> None:
    backend.script = script(reason="length")
    outcome = await replay(backend, read({**saved(), "note": "Changed\x1b[2J."}))
    assert report(outcome)[1:] == ["Changed\\x1b[2J.", "Finish reason: stop then, length now."]


def test_a_terminal_obeys_nothing_in_an_answer() -> None:
    lines = report(Outcome("tokens", 2, 0, "\x1b[2J[bold]é", "\n", ("Model: \x1b[2J then",)))
    assert lines[1:] == ["Then: \\x1b[2J[bold]é", "Now:  \\n", "Model: \\x1b[2J then"]


# The command


def test_the_help_names_file_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["replay", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert [word for word in ("FILE", "--model", "--device", "--json", "exit code") if word not in out] == []


def test_the_model_of_the_answer_is_taken() -> None:
    value = saved()
    value["made"]["provenance"]["revision"] = COMMIT
    found = settings_for(read(value), Settings(model="auto", threads=3))
    assert (found.model, found.revision, found.threads) == ("sample", COMMIT, 3)
    assert settings_for(read(value), Settings(revision="main")).revision == "main"


@pytest.mark.parametrize("name", ["/etc", "~", ".", "my-folder", "https://example.org/x", "evil/repository", "\x1b[2J"])
def test_l4_a_file_names_no_folder_and_no_other_repository(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for model in (name, str(tmp_path)):
        value = saved(replace(FINISH, provenance=Provenance(model)))
        with pytest.raises(UnknownModelError, match="--model"):
            settings_for(read(value), Settings())


@pytest.mark.parametrize("revision", ["main", "refs/pr/7", "abc", "A" * 40, "a" * 39, "a" * 40 + "\n", "../x"])
def test_l4_a_file_names_no_branch(revision: str) -> None:
    value = saved(replace(FINISH, provenance=Provenance("sample", revision)))
    with pytest.raises(UnknownModelError, match="--revision"):
        settings_for(read(value), Settings())
    assert settings_for(read(value), Settings(revision="mine")).revision == "mine"


def test_without_a_name_the_settings_stay() -> None:
    value = saved(replace(FINISH, provenance=None))
    assert settings_for(read(value), Settings(model="auto")) == Settings(model="auto")


def test_a_missing_model_is_an_error() -> None:
    value = saved(replace(FINISH, provenance=Provenance("my-folder")))
    with pytest.raises(UnknownModelError, match="'my-folder'.*--model"):
        settings_for(read(value), Settings())


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("text", ["It is 42.", "It is 43."])
def test_the_command_prints_and_has_an_exit_code(
    text: str, chosen: bool, backend: FakeBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend.script = script(text, token_ids=())
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(saved()), encoding="utf-8")
    opened: list[str] = []

    def open_fake(settings: Settings, console: Console) -> FakeBackend:
        opened.append(settings.model)
        return backend

    equal = run_replay(str(path), Settings(model="mine"), chosen, Console(file=io.StringIO()), open_fake, False)
    assert equal == (text == "It is 42.")
    out = capsys.readouterr().out
    assert ("is the same: 21 characters" in out) == equal
    assert ("differs from character 12 on" in out) != equal
    assert opened == ["mine" if chosen else "sample"]
    assert backend.closed.is_set()


def test_the_command_prints_json(backend: FakeBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend.script = script("It is 43.", token_ids=())
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(saved()), encoding="utf-8")
    run_replay(str(path), Settings(), True, Console(file=io.StringIO()), lambda *_: backend, True)
    report = json.loads(capsys.readouterr().out)
    assert (report["equal"], report["compared"], report["first"]) == (False, "characters", 11)


@pytest.mark.parametrize(
    ("text", "arguments", "words", "code"),
    [
        ("{}", (), "not a file of granite-demo", 1),
        (json.dumps(saved(replace(FINISH, provenance=Provenance("no-model")))), (), "--model", 1),
        (json.dumps(saved()), ("--model", "no-model"), "There is no model 'no-model'", 1),
        (json.dumps(saved()), ("--device", "abacus"), "--device must be one of", 2),
    ],
)
def test_mistakes(
    text: str, arguments: tuple[str, ...], words: str, code: int, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    got, out, err = run("replay", "-", *arguments)
    assert (got, out) == (code, "")
    assert words in err


@pytest.mark.slow
@pytest.mark.release
def test_the_sample_says_the_same_again(
    ready_sample: ReadyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def first(request: GenerationRequest) -> tuple[str, dict[str, Any]]:
        events = [event async for event in backend.stream(request)]
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        return text, bundle.made(request, next(event for event in events if isinstance(event, Finish)))

    conversation = conversations.add(conversations.start(), "user", content="What is the capital of France?")
    sampling = SamplingParams(temperature=1.0, max_tokens=6)
    with closing(backend_over(ready_sample)) as backend:
        text, made = asyncio.run(first(GenerationRequest(conversations.to_messages(conversation), sampling=sampling)))
    conversation = conversations.add(conversation, "assistant", content=text, made=made)
    value = bundle.bundle(conversation, str(conversation.head))
    path = tmp_path / "answer.json"
    for code, words in ((0, "is the same: 6 tokens"), (1, "differs from token 2 on")):
        path.write_text(json.dumps(value), encoding="utf-8")
        with pytest.raises(SystemExit) as end:
            main(["replay", str(path), "--device", "cpu"])
        assert (end.value.code, words in capsys.readouterr().out) == (code, True)
        value["made"]["token_ids"][1] += 1


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 7])
def test_the_sample_goes_on_as_if_it_had_never_been_cut(ready_sample: ReadyModel, cut: int) -> None:
    async def finish(tokens: int, written: tuple[int, ...] = ()) -> Finish:
        sampling = SamplingParams(max_tokens=tokens)
        request = GenerationRequest((Message("user", "Name three colours."),), sampling=sampling, written=written)
        events = [event async for event in backend.stream(request)]
        return next(event for event in events if isinstance(event, Finish))

    async def compared() -> tuple[Finish, Finish]:
        first = await finish(cut)
        return await finish(12), await finish(12 - cut, first.token_ids)

    with closing(backend_over(ready_sample)) as backend:
        whole, gone_on = asyncio.run(compared())
    assert gone_on.token_ids == whole.token_ids
    assert (gone_on.reason, gone_on.usage, gone_on.provenance) == (whole.reason, whole.usage, whole.provenance)


@pytest.mark.parametrize("name", ["no-such-file.json", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_an_error(name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_file(name)
