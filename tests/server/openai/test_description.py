"""The description of the API: requests made from it never make the server fail, and answers are as it says."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok

from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.types.events import ScoreSummary
from tests.fakes import FakeBackend

schemathesis.checks.load_all_checks()
WANTED = {"not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"}
UNASKED: Any = [check for check in schemathesis.checks.CHECKS.get_all() if check.__name__ not in WANTED]
ROUTES = {"GET /models", "GET /models/{name}", "POST /chat/completions", "POST /completions"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    backend = FakeBackend()
    backend.scores = [ScoreSummary(2, -0.5, 0.1)]
    with running(create_app(backend), backend) as url:
        yield url


def test_a_tool_can_be_named(url: str) -> None:
    described = httpx.get(f"{url}/v1/openapi.json").json()["components"]["schemas"]["ChatRequest"]["properties"]
    takes = Draft202012Validator(described["tool_choice"]).is_valid
    assert all(map(takes, ["none", "auto", "required", {"type": "function", "function": {"name": "add"}}]))
    assert not any(map(takes, ["add", {"type": "function"}, {"function": {"name": "add"}}]))


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_makes_the_server_fail(url: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/v1/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    assert {operation.label for operation in operations} == ROUTES
    answered = set()
    for operation in operations:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=40,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: Case[Any]) -> None:
            response = case.call()
            answered.add(response.status_code)
            case.validate_response(response, excluded_checks=UNASKED)

        ask()
    assert 400 in answered
