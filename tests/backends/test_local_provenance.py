"""What is told of how an answer was made can be checked with any SHA-256."""

from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest

from granite_demo.backends.local import provenance_of
from granite_demo.backends.model_manager import ReadyModel
from granite_demo.types.engine_kinds import BATCHING
from granite_demo.types.events import Provenance
from granite_demo.types.model_status import Chosen, EngineSetup
from tests.fakes import PLACEMENT, SOURCE, FakeEngine

STORED = {
    "Device": "cpu",
    "Precision": "bfloat16",
    "Quantization": "none",
    "Attention": "sdpa",
    "Engine": "batching, up to 64 requests in a step",
}
"""The form in which conversations are saved: those saved before have to stay readable."""


class BatchingFake(FakeEngine):
    setup = EngineSetup(Chosen(BATCHING, "many", BATCHING.words(64)))


def ready(template: Any, commit: str | None = None) -> ReadyModel:
    tokenizer = SimpleNamespace(
        chat_template=template, get_chat_template=lambda _, tools: template["tool_use" if tools else "default"]
    )
    loaded: Any = SimpleNamespace(
        tokenizer=tokenizer,
        spec=SimpleNamespace(name="granite"),
        source=replace(SOURCE, commit=commit),
        placement=PLACEMENT,
    )
    return ReadyModel(loaded, BatchingFake([]))


def test_of_a_chat() -> None:
    assert provenance_of(ready("{{ é }}", "abc"), [1, 22, 333], raw=False, tools=False) == Provenance(
        model="granite",
        revision="abc",
        template_sha256=sha256("{{ é }}".encode()).hexdigest(),
        prompt_sha256=sha256(b"1,22,333").hexdigest(),
        choices=STORED,
    )


def test_a_completion_has_no_template() -> None:
    told = provenance_of(ready("{{ x }}"), [1], raw=True, tools=False)
    assert (told.template_sha256, told.revision) == ("", "")
    assert provenance_of(ready(None), [1], raw=False, tools=False).template_sha256 == ""


@pytest.mark.parametrize(("tools", "name"), [(True, "tool_use"), (False, "default")])
def test_the_template_is_the_one_that_was_taken(tools: bool, name: str) -> None:
    told = provenance_of(ready({"default": "default", "tool_use": "tool_use"}), [1], raw=False, tools=tools)
    assert told.template_sha256 == sha256(name.encode()).hexdigest()
