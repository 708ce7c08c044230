"""What a call that must come is held to, by the matcher of a real model's tokenizer."""

from typing import TYPE_CHECKING

import pytest

from granite_demo.api.forced_calls import call_constraint
from granite_demo.constraints import compile_constraint
from granite_demo.messages import ToolSpec
from granite_demo.toolcalls import read_calls

if TYPE_CHECKING:
    from granite_demo.loading import LoadedModel

NUMBER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOLS = (ToolSpec("add", "Adds.", NUMBER), ToolSpec("now", "The time.", {"type": "object", "properties": {}}))


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"name": "add", "arguments": {"a": 12}}', True),
        ('{"name": "now", "arguments": {}}', True),
        ('{"name": "add", "arguments": {"a": "12"}}', False),
        ('{"name": "add", "arguments": {}}', False),
        ('{"name": "sub", "arguments": {"a": 12}}', False),
        ("I would add.", False),
    ],
)
def test_only_calls_of_the_tools_fit(sample: "LoadedModel", text: str, fits: bool) -> None:
    vocabulary = sample.model.config.vocab_size
    matcher = compile_constraint(sample.tokenizer, call_constraint(TOOLS), vocabulary, sample.eos_ids)
    for token in sample.tokenizer.encode(text, add_special_tokens=False):
        if not matcher.allowed()[token]:
            break
        matcher.accept(token)
    else:
        assert fits
        assert matcher.ended
        assert [call.error for call in read_calls(text)[0]] == [""]
        return
    assert not fits
