"""The switches of a template and their conflicts, found by rendering."""

import time
from pathlib import Path
from typing import Any

import pytest

from granite_demo.prompts import jinja_chat, template_features
from granite_demo.prompts.template_features import find_switches, reasons
from granite_demo.types.messages import Switches
from tests.bytetokens import THINKS, byte_tokenizer, real_template
from tests.loaded import load_checkpoint
from tests.tinymodels import write_checkpoint


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def found(tokenizer: Any, template: Any) -> Switches:
    tokenizer.chat_template = template
    return find_switches(tokenizer)


def test_of_granite_3_3(tokenizer: Any) -> None:
    switches = found(tokenizer, real_template("granite-3.3-instruct"))
    assert switches.thinking == ("off", "full")
    assert switches.length
    assert switches.originality
    assert switches.citations
    assert switches.hallucinations
    assert switches.tools
    assert switches.documents
    assert switches.dialect == "3.3"
    lists = [(name, cause) for name in ("citations", "hallucinations") for cause in ("system", "no documents")]
    assert switches.conflicts == (*lists, ("thinking", "system"), ("thinking", "tools"), ("thinking", "documents"))


def test_of_granite_4_0(tokenizer: Any) -> None:
    switches = found(tokenizer, real_template("granite-4.0"))
    assert switches == Switches(tools=True, documents=True, dialect="4.0")


def test_of_granite_4_2(tokenizer: Any) -> None:
    switches = found(tokenizer, THINKS)
    assert switches == Switches(thinking=("full", "low", "off"), dialect="4.2")


def test_another_variable_for_low_effort(tokenizer: Any) -> None:
    template = THINKS.replace("low_effort", "reasoning_effort == 'low'")
    assert found(tokenizer, template).thinking == ("full", "low", "off")


def test_a_template_without_levels_between(tokenizer: Any) -> None:
    assert found(tokenizer, "{{ messages[0].content }}{% if enable_thinking %}T{% endif %}").thinking == ("off", "full")


ANSWER = "{{ messages[-1].content }}"


@pytest.mark.parametrize(
    ("template", "switches"),
    [
        (ANSWER, Switches()),
        (None, Switches()),
        ("", Switches()),
        ("{% if %}", Switches()),
        ("{{ raise_exception('Never.') }}", Switches()),
        (ANSWER + "{{ thinking }}{% set thinking = 1 %}", Switches(thinking=("full", "off"))),
        (ANSWER + "{% if thinking and false %}T{% endif %}", Switches()),
        ("{% generation %}" + ANSWER + "{% endgeneration %}{{ 'T' if thinking }}", Switches(thinking=("off", "full"))),
        (ANSWER + "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}", Switches(tools=True)),
        (ANSWER + "{{ controls.length }}", Switches(length=True)),
        (ANSWER + "{{ controls.originality if tools else '' }}", Switches()),
    ],
    ids=["plain", "none", "empty", "broken", "refuses", "echo", "ineffective", "wrapped", "tools", "length", "hidden"],
)
def test_of_odd_templates(tokenizer: Any, template: str | None, switches: Switches) -> None:
    assert found(tokenizer, template) == switches


def test_a_template_that_takes_no_system_message(tokenizer: Any) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('No.') }}{% endif %}{{ 'T' if thinking }}"
    assert found(tokenizer, template + ANSWER) == Switches(thinking=("off", "full"))


def test_switches_of_named_templates(tokenizer: Any) -> None:
    named = {"default": ANSWER + "{{ 'T' if thinking }}", "tool_use": ANSWER + "{{ tools }}{{ 'T' if thinking }}"}
    assert found(tokenizer, named) == Switches(thinking=("off", "full"), tools=True)


def test_a_loaded_model_knows_its_switches(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "granite", "granite")
    (folder / "chat_template.jinja").write_text(THINKS)
    loaded = load_checkpoint(folder)
    assert loaded.switches.thinking == ("full", "low", "off")


def test_switches_without_effect_have_a_reason() -> None:
    switches = Switches(
        conflicts=(("thinking", "system"), ("thinking", "tools"), ("hallucinations", "no documents")),
    )
    found = reasons(switches, system=True, tools=True, documents=True)
    assert found == {"thinking": "This model's template ignores thinking when a system prompt is set."}
    found = reasons(switches, system=False, tools=True, documents=False)
    assert found["thinking"].endswith("when tools are offered.")
    assert found["hallucinations"].endswith("ignores the check for hallucinations without documents.")
    assert reasons(switches, system=False, tools=False, documents=True) == {}


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(10**5) %}{% for b in range(10**5) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{% if thinking %}{% for a in range(10**5) %}{% for b in range(10**5) %}{% endfor %}{% endfor %}{% endif %}a",
    ],
)
def test_a_hostile_template_does_not_keep_the_load_busy(
    tokenizer: Any, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jinja_chat, "RENDER_SECONDS", 0.1)
    monkeypatch.setattr(template_features, "SWITCHES_SECONDS", 0.3)
    start = time.thread_time()
    assert found(tokenizer, template) == Switches()
    assert time.thread_time() - start < 2
