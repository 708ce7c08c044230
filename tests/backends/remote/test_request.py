"""Bodies of requests."""

import pytest

from granite_demo.backends.remote.families import find_family
from granite_demo.backends.remote.request import to_body
from granite_demo.errors import InvalidRequestError
from granite_demo.types.requests import GenerationRequest


@pytest.mark.parametrize("wanted", [True, False])
def test_our_own_server_is_told_whether_a_text_may_spell_control_tokens(wanted: bool) -> None:
    request = GenerationRequest(prompt="<|end|>", special_tokens=wanted)
    fields = to_body(request, "m", find_family("m"), "granite-demo").fields
    assert fields["special_tokens"] is wanted


def test_of_another_server_it_cannot_be_wanted() -> None:
    request = GenerationRequest(prompt="<|end|>", special_tokens=True)
    with pytest.raises(InvalidRequestError, match="Leave --special-tokens out"):
        to_body(request, "m", find_family("m"), "vLLM")
    fields = to_body(GenerationRequest(prompt="x"), "m", find_family("m"), "vLLM").fields
    assert "special_tokens" not in fields
