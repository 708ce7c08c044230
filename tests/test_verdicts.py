"""One verdict on the bad requests: page and command line, driven for real, refuse what the API does.

tests/server/openai/test_errors.py has the API's verdicts. What a front end has no way to say is named with the reason.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from granite_demo.cli import main as cli
from granite_demo.cli.main import main
from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.settings import Settings
from tests.bad_requests import BAD_REQUESTS, CHAT, COMPLETION, SAMPLED, Bad
from tests.fakes import FakeBackend

SCHEMA = '{"not": {}}'
LABELS = {
    "temperature": "Temperature",
    "top_p": "Top-p",
    "top_k": "Top-k",
    "min_p": "Min-p",
    "repetition_penalty": "Repetition penalty",
    "max_tokens": "Max new tokens",
    "seed": "Seed",
}
FORM = "The continuation has to be"
PAGE_CELLS: dict[str, tuple[dict[str, Any], str]] = {
    "an empty prompt": ({"Text": ""}, "The prompt is empty."),
    "a pattern too long": ({FORM: "regex", "Regular expression": "x" * 5000}, "A pattern must be a text of 1 to"),
    "nothing to choose from": ({FORM: "choice", "Choices": ""}, "choices"),
    "a schema that cannot be kept to": ({FORM: "json_schema", "JSON schema": SCHEMA}, "not at # of the schema"),
}
"""What is put into the boxes of the Write tab, and what is said of it."""
FLAG_CELLS: dict[str, tuple[list[str], str]] = {
    "temperature=10000000000000000000 (int)": (
        ["Hi", "--temperature", "1" + "0" * 400],
        "Temperature must be a number",
    ),
    "an unknown field": (["Hi", "--best-of-all", "1"], "No such option: --best-of-all"),
    "too many alternatives": (["Hi", "--json", "--logprobs", "21"], "Logprobs must be between 0 and 20"),
    "a schema that cannot be kept to": (["Hi", "--schema", "FILE"], "not at # of the schema"),
    "a pattern too long": (["Hi", "--regex", "x" * 5000], "A pattern must be a text of 1 to"),
    "nothing to choose from": (["Hi", "--choice", ""], "choices"),
    "two formats": (["Hi", "--regex", "a", "--choice", "a"], "only one of"),
    "thinking that is a number": (["Hi", "--thinking", "1"], "hinking must be"),
    "an empty prompt": (["--raw", ""], "The prompt is empty."),
}
NUMBERS = "A box for numbers makes 1 of it."
TYPED = "Whatever is typed is text: 7 is a number here, and there are no lists of numbers."
LINES = "The box for stop strings holds lines of text: what is empty is none."
NO_BOX = "The page has no box for it."
NO_FLAG = "The command line has no flag for it: it makes messages, tools and the like itself, or does without."
THINKS = "The switches of the model are known when it is loaded. A note then shows it, and the answer has none."


def page_cell(bad: Bad) -> tuple[dict[str, Any], str] | str:
    """(values by label, words) for the page, or why there are none."""
    if bad.name in PAGE_CELLS:
        return PAGE_CELLS[bad.name]
    for name, value in bad.sampling.items():
        if name == "stop":
            return LINES if value in ("", 3, [3]) else ({"Stop strings": "\n".join(value)}, bad.words)
        if name == "max_tokens" and value is True:
            return NUMBERS
        if name == "seed" and value == "7":
            return TYPED
        if name in LABELS:
            # A seed is typed as text, of which the page has words of its own.
            return ({"Seed": str(value)}, "eed must be") if name == "seed" else ({LABELS[name]: value}, bad.words)
    return NO_BOX


def flag_cell(bad: Bad) -> tuple[list[str], str] | str:
    """(arguments, words) for ``complete``, or why there are none."""
    if bad.name in FLAG_CELLS:
        return FLAG_CELLS[bad.name]
    if bad.name == "thinking of a model without":
        return THINKS
    for name, value in bad.sampling.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "stop" and isinstance(value, list) and value != [3]:
            return ["Hi", *(part for text in value for part in (flag, text))], bad.words
        if value in ("0.5", "7", "1", 3, [3]):
            return TYPED
        extra = ["--json"] if name == "logprobs" else []
        return ["Hi", *extra, flag, str(value)], bad.words
    return NO_FLAG


ON_PAGE = [bad for bad in BAD_REQUESTS if not isinstance(page_cell(bad), str)]
ON_COMMAND_LINE = [bad for bad in BAD_REQUESTS if not isinstance(flag_cell(bad), str)]


class Page:
    """The Write tab of a server at ``url``, as its browser speaks to it."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60)
        config = self.http.get("/config").json()
        self.shown = {component["id"]: component["props"] for component in config["components"]}
        (run,) = (number for number, props in self.shown.items() if props.get("elem_id") == "run")
        (self.event,) = (event for event in config["dependencies"] if [run, "click"] in event["targets"])

    def ask(self, values: dict[str, Any]) -> str:
        """Press Continue with ``values`` in the boxes with these labels; all that is answered."""
        inputs = [self.shown[number] for number in self.event["inputs"]]
        labels = {props.get("label") for props in inputs}
        assert set(values) <= labels, labels
        data = [values.get(props.get("label", ""), props.get("value")) for props in inputs]
        body = json.dumps({"data": data, "fn_index": self.event["id"], "session_hash": "s"})
        head = {"content-type": "application/json"}
        self.http.post("/gradio_api/queue/join", content=body, headers=head).raise_for_status()
        messages = ""
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": "s"}) as answer:
            for line in answer.iter_lines():
                messages += line
                if '"process_completed"' in line:
                    break
        return messages


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakeBackend, Page]]:
    backend = FakeBackend()
    with running(create_app(backend), backend) as url:
        page = Page(url)
        yield backend, page
        page.http.close()


@pytest.mark.parametrize("bad", ON_PAGE, ids=lambda bad: bad.name[:40])
def test_the_page_refuses_it(served: tuple[FakeBackend, Page], bad: Bad) -> None:
    backend, page = served
    cell = page_cell(bad)
    assert not isinstance(cell, str)
    before = len(backend.requests)
    messages = page.ask({"Text": "Once", **cell[0]})
    assert len(backend.requests) == before
    # What is beyond a slider's ends, or no number at all, Gradio refuses before it reaches us.
    assert cell[1] in messages or '"success":false' in messages


@pytest.mark.parametrize("bad", ON_COMMAND_LINE, ids=lambda bad: bad.name[:40])
def test_the_command_line_refuses_it(
    bad: Bad, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cell = flag_cell(bad)
    assert not isinstance(cell, str)
    file = tmp_path / "schema.json"
    file.write_text(SCHEMA, encoding="utf-8")
    code, err, opened = complete([str(file) if part == "FILE" else part for part in cell[0]], monkeypatch, capsys)
    assert code == 2
    assert not opened
    # What is no number at all is refused by the reader of the flags, by the flag's name.
    assert cell[1] in err or f"Invalid value for '--{next(iter(bad.sampling), '-').replace('_', '-')}'" in err


def complete(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, list[FakeBackend]]:
    """Exit code and standard error of ``complete``, and the backends that it has opened."""
    opened: list[FakeBackend] = []

    def open_fake(settings: Settings, console: Console) -> FakeBackend:
        opened.append(FakeBackend())
        return opened[-1]

    monkeypatch.setattr(cli, "ready_backend", open_fake)
    monkeypatch.setenv("TERMINAL_WIDTH", "400")
    with pytest.raises(SystemExit) as end:
        main(["complete", *arguments])
    assert isinstance(end.value.code, int)
    return end.value.code, " ".join(capsys.readouterr().err.split()), opened


def test_lone_surrogates_are_replaced_by_each_door(
    served: tuple[FakeBackend, Page], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backend, page = served
    backend.requests.clear()
    for route, given in (
        (COMPLETION, {"prompt": "a\ud800b"}),
        (CHAT, {"messages": [{"role": "user", "content": "a\ud800b"}]}),
    ):
        body = json.dumps({**given, "stop": ["c\udfff"]})
        head = {"content-type": "application/json"}
        assert page.http.post(route, content=body, headers=head).status_code == 200
    page.ask({"Text": "a\ud800b", "Stop strings": "c\udfff"})
    # A byte that is no UTF-8 reaches the command line as half a pair.
    code, _, (fake,) = complete(["--raw", "a\udcffb", "--stop", "c\udcff"], monkeypatch, capsys)
    assert code == 0
    asked = [*backend.requests, *fake.requests]
    assert [request.prompt or request.messages[0].content for request in asked] == ["a\ufffdb"] * 4
    assert [request.sampling.stop for request in asked] == [("c\ufffd",)] * 4


def test_each_door_has_a_verdict_or_a_reason_on_sixty_and_more() -> None:
    assert len(BAD_REQUESTS) >= 60
    for bad in BAD_REQUESTS:
        assert page_cell(bad), bad.name
        assert flag_cell(bad), bad.name
    assert {name for cells in (PAGE_CELLS, FLAG_CELLS) for name in cells} <= {bad.name for bad in BAD_REQUESTS}
    both = [bad for bad in SAMPLED if bad in ON_PAGE and bad in ON_COMMAND_LINE]
    assert len(both) > 20
    assert len(ON_COMMAND_LINE) > 38
