"""What a call that must come is held to, by the matcher of a real model's tokenizer."""

from typing import Any

import pytest
from pydantic import BaseModel

from granite_demo.outputs.structured_output import compile_constraint
from granite_demo.outputs.tool_calls import read_calls
from granite_demo.server.openai.tool_choice import call_constraint
from granite_demo.types.messages import ToolSpec


class Place(BaseModel):
    """A place, and what lies in it."""

    name: str
    within: "list[Place]" = []


class Trip(BaseModel):
    """Its parameters refer to definitions, as pydantic writes them."""

    start: Place
    end: Place


NUMBER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
DRAFT = "https://json-schema.org/draft/2020-12/schema"
TOOLS = (
    ToolSpec("add", "Adds.", NUMBER),
    ToolSpec("now", "The time.", {"type": "object", "properties": {}}),
    ToolSpec("travel", "Travels.", {"$schema": DRAFT, "$id": "https://example.com/trip", **Trip.model_json_schema()}),
    ToolSpec("visit", "Visits.", {**Place.model_json_schema(), "examples": [{"$ref": "#/$defs/Place"}]}),
)
PRAGUE, JICIN = '{"name": "Prague", "within": [{"name": "Castle"}]}', '{"name": "Jicin"}'


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"name": "add", "arguments": {"a": 12}}', True),
        ('{"name": "now", "arguments": {}}', True),
        (f'{{"name": "travel", "arguments": {{"start": {JICIN}, "end": {PRAGUE}}}}}', True),
        (f'{{"name": "visit", "arguments": {PRAGUE}}}', True),
        ('{"name": "travel", "arguments": {"start": {"name": 1}, "end": {}}}', False),
        ('{"name": "visit", "arguments": {"name": "Prague", "within": [1]}}', False),
        ('{"name": "add", "arguments": {"a": "12"}}', False),
        ('{"name": "add", "arguments": {}}', False),
        ('{"name": "sub", "arguments": {"a": 12}}', False),
        ("I would add.", False),
    ],
)
def test_only_calls_of_the_tools_fit(sample_tokenizer: Any, text: str, fits: bool) -> None:
    ends = {sample_tokenizer.eos_token_id}
    matcher = compile_constraint(sample_tokenizer, call_constraint(TOOLS), len(sample_tokenizer), ends)
    for token in sample_tokenizer(text, add_special_tokens=False).input_ids:
        if not matcher.allowed()[token]:
            break
        matcher.accept(token)
    else:
        assert fits
        assert matcher.ended
        assert [call.error for call in read_calls(text)[0]] == [""]
        return
    assert not fits
