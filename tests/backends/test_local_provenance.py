"""Tests that any SHA-256 tool can check the provenance of an answer."""

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
"""The format in saved conversations. Older conversations must remain readable."""


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


def test_the_provenance_of_a_chat() -> None:
    assert provenance_of(ready("{{ é }}", "abc"), [1, 22, 333], raw=False, tools=False) == Provenance(
        model="granite",
        revision="abc",
        template_sha256=sha256("{{ é }}".encode()).hexdigest(),
        prompt_sha256=sha256(b"1,22,333").hexdigest(),
        choices=STORED,
    )


def test_a_completion_has_no_template() -> None:
    provenance = provenance_of(ready("{{ x }}"), [1], raw=True, tools=False)
    assert (provenance.template_sha256, provenance.revision) == ("", "")
    assert provenance_of(ready(None), [1], raw=False, tools=False).template_sha256 == ""


@pytest.mark.parametrize(("tools", "name"), [(True, "tool_use"), (False, "default")])
def test_the_template_is_the_one_that_was_used(tools: bool, name: str) -> None:
    provenance = provenance_of(ready({"default": "default", "tool_use": "tool_use"}), [1], raw=False, tools=tools)
    assert provenance.template_sha256 == sha256(name.encode()).hexdigest()
