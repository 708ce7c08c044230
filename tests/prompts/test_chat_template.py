"""The arguments for a chat template: only the names that it reads, and only what the request sets."""

from dataclasses import replace
from typing import Any

import pytest

from granite_demo.prompts.chat_template import switch_values, template_inputs, variables_of
from granite_demo.types.constraints import Constraint
from granite_demo.types.messages import Controls, Document, Message, ToolCall, ToolSpec
from granite_demo.types.prompt_view import Origin
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.sampling_params import SamplingParams
from tests.bytetokens import THINKS, real_template

USER = Message("user", "hi")
LOW = frozenset({"enable_thinking", "low_effort", "reasoning_effort"})
EFFORT = frozenset({"enable_thinking", "reasoning_effort"})
OLD = frozenset({"thinking", "controls"})


def test_variables_are_those_from_outside() -> None:
    assert variables_of(THINKS) == {"messages", "low_effort", "enable_thinking"}
    assert variables_of("{% set a = b %}{{ a }}{% generation %}{{ c }}{%- endgeneration -%}") == {"b", "c"}
    assert variables_of("{% for x in y %}{% if x %}{% break %}{% endif %}{% endfor %}") == {"y"}
    assert variables_of("{% if %}") == frozenset()


def test_variables_of_a_real_template() -> None:
    assert variables_of(real_template("granite-3.3-instruct")) >= {"thinking", "controls", "tools", "documents"}


@pytest.mark.parametrize(
    ("controls", "variables", "values"),
    [
        (Controls(), LOW, {}),
        (Controls(thinking="full"), LOW, {"enable_thinking": True}),
        (Controls(thinking="off"), LOW, {"enable_thinking": False}),
        (Controls(thinking="low"), LOW, {"enable_thinking": True, "low_effort": True}),
        (Controls(thinking="low"), EFFORT, {"enable_thinking": True, "reasoning_effort": "low"}),
        (Controls(thinking="low"), frozenset({"thinking"}), {}),
        (Controls(thinking="full", citations=True), frozenset(), {}),
        (Controls(), OLD, {"controls": {}}),
        (Controls(truncate_history_thinking=False), LOW, {}),
        (
            Controls(truncate_history_thinking=False),
            frozenset({"truncate_history_thinking"}),
            {"truncate_history_thinking": False},
        ),
        (Controls(thinking="off"), OLD, {"thinking": False, "controls": {}}),
        (
            Controls(thinking="full", length="long", originality="extractive", citations=True, hallucinations=True),
            OLD,
            {
                "thinking": True,
                "controls": {
                    "citations": True,
                    "hallucinations": True,
                    "length": "long",
                    "originality": "extractive",
                },
            },
        ),
    ],
)
def test_switches_by_the_names_that_are_read(
    controls: Controls, variables: frozenset[str], values: dict[str, Any]
) -> None:
    found = switch_values(controls, variables)
    assert found == values
    assert list(found.get("controls", {})) == sorted(found.get("controls", {}))


def test_reasoning_is_passed_only_if_the_template_reads_it() -> None:
    request = GenerationRequest((USER, Message("assistant", "so", thinking="hm"), USER))
    assert template_inputs(request, THINKS)["conversation"][1]["reasoning_content"] == "hm"
    assert "reasoning_content" not in template_inputs(request, "{{ messages }}")["conversation"][1]


def test_switches_that_are_not_set_are_not_passed() -> None:
    assert template_inputs(GenerationRequest((USER,)), THINKS) == {
        "conversation": [{"role": "user", "content": "hi"}],
        "tools": None,
        "documents": None,
    }


def test_every_text_of_the_request_passes_through_write() -> None:
    written: list[tuple[Origin, str, bool]] = []

    def write(origin: Origin, text: str, key: bool) -> str:
        written.append((origin, text, key))
        return text.upper()

    request = GenerationRequest(
        (
            Message("system", "sys"),
            USER,
            Message(
                "assistant", "so", thinking="hm", tool_calls=(ToolCall("f", '{"k": ["v", 1]}'), ToolCall("g", "?"))
            ),
            Message("tool", "42", name="f"),
        ),
        tools=(ToolSpec("f", "does", {"type": "object"}),),
        documents=(Document("t", "d"),),
    )
    inputs = template_inputs(request, THINKS, write)
    assert set(written) == {
        ("system", "sys", False),
        ("user", "hi", False),
        *(("assistant", text, False) for text in ("so", "hm")),
        *(("tool", text, False) for text in ("f", "v", "g", "?", "42", "does", "object")),
        *(("tool", text, True) for text in ("name", "arguments", "k", "description", "parameters", "type")),
        *(("document", text, False) for text in ("t", "d")),
        *(("document", text, True) for text in ("doc_id", "title", "text")),
    }
    assert inputs["documents"] == [{"DOC_ID": 1, "TITLE": "T", "TEXT": "D"}]
    assert inputs["tools"][0]["type"] == "function"
    assert inputs["conversation"][2]["tool_calls"][0]["function"]["ARGUMENTS"] == {"K": ["V", 1]}
    assert inputs["conversation"][3] == {"role": "tool", "content": "42", "name": "F"}


@pytest.mark.parametrize("arguments", ["[1]", "1", "{", "null", "[" * 100_000])
def test_arguments_that_are_not_an_object_are_passed_as_text(arguments: str) -> None:
    request = GenerationRequest((USER, Message("assistant", "", tool_calls=(ToolCall("f", arguments),)), USER))
    call = template_inputs(request, THINKS)["conversation"][1]["tool_calls"][0]
    assert call == {"type": "function", "function": {"name": "f", "arguments": arguments}}


@pytest.mark.parametrize(
    ("system", "content"),
    [
        (
            (),
            "You are a helpful assistant that answers in JSON. Here's the json schema you must adhere to:\n<schema>\n",
        ),
        ((Message("system", "Be kind."),), "Be kind.\nHere's the json schema you must adhere to:\n<schema>\n"),
    ],
)
def test_the_schema_is_in_the_system_message_if_it_is_wanted(system: tuple[Message, ...], content: str) -> None:
    sampling = SamplingParams(constraint=Constraint.from_schema({"type": "object"}))
    request = GenerationRequest((*system, USER), sampling=sampling)
    assert len(template_inputs(request, "")["conversation"]) == len(system) + 1
    wanted = replace(request, controls=Controls(schema_in_prompt=True))
    first, *rest = template_inputs(wanted, "")["conversation"]
    assert first == {"role": "system", "content": content + '{"type":"object"}\n</schema>'}
    assert rest == [{"role": "user", "content": "hi"}]
    assert template_inputs(replace(wanted, sampling=SamplingParams()), "") == template_inputs(
        replace(request, sampling=SamplingParams()), ""
    )
