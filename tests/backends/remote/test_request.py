"""Tests for the bodies of requests."""

from typing import Any

import pytest

from granite_demo.backends.remote.families import find_family
from granite_demo.backends.remote.request import to_body
from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import Message
from granite_demo.types.requests import GenerationRequest


@pytest.mark.parametrize("wanted", [True, False])
def test_granite_demo_gets_the_field_special_tokens(wanted: bool) -> None:
    request = GenerationRequest(prompt="<|end|>", special_tokens=wanted)
    fields = to_body(request, "m", find_family("m"), "granite-demo").fields
    assert fields["special_tokens"] is wanted


def test_other_servers_do_not_get_the_field_special_tokens() -> None:
    request = GenerationRequest(prompt="<|end|>", special_tokens=True)
    with pytest.raises(InvalidRequestError, match="Remove --special-tokens"):
        to_body(request, "m", find_family("m"), "vLLM")
    fields = to_body(GenerationRequest(prompt="x"), "m", find_family("m"), "vLLM").fields
    assert "special_tokens" not in fields


@pytest.mark.parametrize("part", [{"written": (1, 2)}, {"written_text": "Once"}])
def test_no_other_server_continues_an_answer(part: dict[str, Any]) -> None:
    request = GenerationRequest((Message("user", "A tale"),), **part)
    with pytest.raises(InvalidRequestError, match="cannot continue an answer"):
        to_body(request, "m", find_family("m"), "vLLM")
