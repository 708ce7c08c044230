"""What is told of how an answer was made can be checked with any SHA-256."""

from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest

from granite_demo.backends.local import provenance_of
from granite_demo.types.events import Provenance

FACTS = (
    ("Model", "Granite", "about"),
    ("Device", "cpu", "no GPU"),
    ("Precision", "float32", ""),
    ("Quantization", "none", ""),
    ("Attention", "sdpa", ""),
    ("Context", "100 tokens", ""),
    ("Engine", "batching", "many"),
)
CHOICES = FACTS[1:5] + FACTS[6:]


def loaded(template: Any, commit: str | None = None) -> Any:
    tokenizer = SimpleNamespace(
        chat_template=template, get_chat_template=lambda _, tools: template["tool_use" if tools else "default"]
    )
    return SimpleNamespace(tokenizer=tokenizer, spec=SimpleNamespace(name="granite"), commit=commit)


def test_of_a_chat() -> None:
    assert provenance_of(loaded("{{ é }}", "abc"), FACTS, [1, 22, 333], raw=False, tools=False) == Provenance(
        model="granite",
        revision="abc",
        template_sha256=sha256("{{ é }}".encode()).hexdigest(),
        prompt_sha256=sha256(b"1,22,333").hexdigest(),
        choices=tuple((name, value) for name, value, _ in CHOICES),
    )


def test_a_completion_has_no_template() -> None:
    told = provenance_of(loaded("{{ x }}"), (), [1], raw=True, tools=False)
    assert (told.template_sha256, told.revision, told.choices) == ("", "", ())
    assert provenance_of(loaded(None), (), [1], raw=False, tools=False).template_sha256 == ""


@pytest.mark.parametrize(("tools", "name"), [(True, "tool_use"), (False, "default")])
def test_the_template_is_the_one_that_was_taken(tools: bool, name: str) -> None:
    told = provenance_of(loaded({"default": "default", "tool_use": "tool_use"}), (), [1], raw=False, tools=tools)
    assert told.template_sha256 == sha256(name.encode()).hexdigest()
