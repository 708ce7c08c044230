"""The commands over another server."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from granite_demo.backends.local import LocalBackend
from granite_demo.backends.remote.backend import RemoteBackend
from granite_demo.backends.side_by_side import SideBySideBackend
from granite_demo.chat import bundle
from granite_demo.chat import conversation as conversations
from granite_demo.cli import composition, main
from granite_demo.cli.composition import backend_beside
from granite_demo.errors import RemoteDownError
from granite_demo.settings import Settings
from granite_demo.types.events import Finish, TextDelta, Timings, Usage
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.messages import Message
from granite_demo.types.model_status import BESIDE
from granite_demo.types.requests import GenerationRequest
from tests.fakes import FakeBackend
from tests.fakeserver import FakeServer, serving

ROOT = Path(__file__).parents[2]


def command(*arguments: str, text: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "granite_demo", *arguments],
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), **variables},
    )


def test_complete_prints_the_servers_answer() -> None:
    server = FakeServer(key="open")
    with serving(server):
        run = command("complete", "--url", server.url, "--url-key", "open", "--model", "mine", text="Hi\n")
    assert (run.returncode, run.stdout) == (0, "Hello world"), run.stderr
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "Hi"}]
    assert server.bodies[0]["model"] == "mine"


@pytest.mark.release
def test_complete_raw_and_the_variables() -> None:
    server = FakeServer([{"choices": [{"text": " a time", "finish_reason": "length"}]}], key="open")
    with serving(server):
        variables = {"GRANITE_DEMO_BACKEND": server.url, "GRANITE_DEMO_BACKEND_KEY": "open"}
        run = command("complete", "--raw", "Once upon", **variables)
    assert (run.returncode, run.stdout) == (0, " a time"), run.stderr
    assert server.bodies[0]["prompt"] == "Once upon"


def test_chat_answers_each_line() -> None:
    server = FakeServer()
    with serving(server):
        run = command("chat", "--url", server.url, text="One\nTwo\n")
    assert (run.returncode, run.stdout.splitlines()) == (0, ["Hello world", "Hello world"]), run.stderr
    assert [turn["content"] for turn in server.bodies[1]["messages"]] == ["One", "Hello world", "Two"]


def test_models_of_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    server = FakeServer()
    with serving(server):
        cli_main("models", "--url", server.url, "--json")
        assert json.loads(capsys.readouterr().out) == [
            {"name": "granite-4.0-micro", "context": 4096, "server": server.url}
        ]
        cli_main("models", "--url", server.url)
        assert "granite-4.0-micro" in capsys.readouterr().out


@pytest.mark.parametrize(("saved", "code"), [("Hello world", 0), ("Hello moon", 1)])
def test_replay_asks_the_server(tmp_path: Path, capsys: pytest.CaptureFixture[str], saved: str, code: int) -> None:
    conversation = conversations.add(conversations.start(), "user", content="Hi")
    request = GenerationRequest(conversations.to_messages(conversation))
    made = bundle.made(request, Finish("stop", Usage(7, 2), Timings(0.1, 0.2)))
    conversation = conversations.add(conversation, "assistant", content=saved, made=made)
    file = tmp_path / "answer.json"
    file.write_text(json.dumps(bundle.bundle(conversation, str(conversation.head))))
    server = FakeServer()
    with serving(server), pytest.raises(SystemExit) as ended:
        main.main(["replay", str(file), "--url", server.url])
    assert ended.value.code == code, capsys.readouterr()
    assert [turn["content"] for turn in server.bodies[0]["messages"]] == ["Hi"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("fits",), "granite-demo models --url lists"),
        (("pull", "granite-4.0-350m"), "A server downloads its models itself"),
        (
            ("compare", "Some text.", "--reference", "float32", "--other", "nf4"),
            "has its model in one precision",
        ),
    ],
)
def test_what_no_server_can_be_asked_says_so(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], why: str
) -> None:
    server = FakeServer()
    with serving(server), pytest.raises(SystemExit) as ended:
        main.main([*arguments, "--url", server.url])
    assert ended.value.code == 2
    assert why in " ".join(capsys.readouterr().err.split())
    assert server.bodies == []


def cli_main(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    assert not ended.value.code


def test_a_server_that_is_down_is_an_error_with_what_to_do() -> None:
    server = FakeServer()
    with serving(server):
        url = server.url
    run = command("complete", "Hi", "--url", url)
    assert run.returncode == 1
    assert "does not answer" in run.stderr
    assert "Traceback" not in run.stderr
    with pytest.raises(RemoteDownError):
        composition.ready_backend(Settings(backend=url), Console(stderr=True))


def test_the_settings_choose_the_backend() -> None:
    console = Console(stderr=True)
    remote = composition.opened_backend(Settings(backend="http://a"), console)
    local = composition.opened_backend(Settings(model="sample"), console)
    assert isinstance(remote, RemoteBackend)
    assert isinstance(local, LocalBackend)
    remote.close()
    local.close()


async def test_the_server_beside_answers_what_asks_for_it_and_nothing_else() -> None:
    here = FakeBackend()
    server = FakeServer(key="shut")
    with serving(server):
        settings = Settings.resolve({"beside": server.url, "beside_key": "shut"}, {})
        whole = SideBySideBackend(here, backend_beside(settings))
        whole.start()
        try:
            question = GenerationRequest((Message("user", "Hi"),))
            there = [event async for event in whole.stream(replace(question, model=LoadOptions(BESIDE)))]
            assert "".join(event.text for event in there if isinstance(event, TextDelta)) == "Hello world"
            assert not here.requests
            assert [event async for event in whole.stream(question)]
            assert here.requests == [question]
        finally:
            whole.close()
    assert "shut" in settings.secrets
    assert here.closed.is_set()
