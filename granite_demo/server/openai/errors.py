"""Every error as OpenAI's object: {"error": {"message", "type", "param", "code"}}.

https://platform.openai.com/docs/guides/error-codes
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from granite_demo.errors import (
    ContextOverflowError,
    EngineBusyError,
    GraniteDemoError,
    InvalidRequestError,
    UnknownModelError,
    VisitorLimitError,
    failure_of,
)

MAX_ERROR_TEXT, MAX_PARAM = 600, 120
"""Characters of ``message`` and ``param``, which can quote the request: a longer text is cut."""
RETRY_AFTER_SECONDS = 10
"""The Retry-After of 429 and 503."""
CODES = {
    ContextOverflowError: "context_length_exceeded",
    UnknownModelError: "model_not_found",
    EngineBusyError: "server_busy",
    VisitorLimitError: "rate_limit_exceeded",
}
STATUS_CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed"}
STATUS_CODES |= {413: "request_too_large", 429: "rate_limit_exceeded"}


class RefusedError(InvalidRequestError):
    """A request that cannot be served because of one field. ``path`` is the place of the field in the body."""

    def __init__(self, message: str, path: Sequence[str | int], code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.path = path
        self.code = code
        self.status = status


@contextmanager
def about(*path: str | int) -> Iterator[None]:
    """An InvalidRequestError in the block becomes a RefusedError for the field at ``path``."""
    try:
        yield
    except RefusedError:
        raise
    except InvalidRequestError as error:
        raise RefusedError(error.user_text, path) from None


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The error object. ``message`` and ``param`` are cut to their limits."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": _cut(message, MAX_ERROR_TEXT), "type": kind, "param": param, "code": code}}


def error_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """(status, body) for any exception. The text of an unexpected one goes to the log only."""
    if isinstance(error, RefusedError):
        return error.status, error_body(error.user_text, error.status, _path(error.path), error.code)
    if isinstance(error, GraniteDemoError):
        code = next((code for kind, code in CODES.items() if isinstance(error, kind)), None)
        return error.status, error_body(error.user_text, error.status, None, code)
    if isinstance(error, RequestValidationError):
        return 400, _invalid(error)
    if isinstance(error, HTTPException):
        code = STATUS_CODES.get(error.status_code)
        return error.status_code, error_body(str(error.detail), error.status_code, None, code)
    status, text = failure_of(error)
    return status, error_body(text, status)


def error_response(error: Exception) -> JSONResponse:
    """The answer to a request that failed."""
    status, body = error_of(error)
    headers = dict(getattr(error, "headers", None) or {})
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers.setdefault("retry-after", str(RETRY_AFTER_SECONDS))
    return JSONResponse(body, status, headers)


def _invalid(error: RequestValidationError) -> dict[str, Any]:
    first = error.errors()[0]
    path, kind = first["loc"][1:], first["type"]
    param = _path(path)
    if kind == "extra_forbidden":
        return error_body(f"{param} is not supported here.", 400, param, "unknown_parameter")
    if kind == "missing":
        return error_body(f"{param or 'The body'} is missing.", 400, param, "missing_required_parameter")
    if kind == "json_invalid":
        return error_body("The body is not valid JSON.", 400)
    if not path:
        return error_body("The body must be a JSON object, sent with content-type application/json.", 400)
    cause = first.get("ctx", {}).get("error")
    # The project's own checks have messages of their own; the rest are those of pydantic.
    message = str(cause) if isinstance(cause, ValueError) else f"{param}: {first['msg']}."
    return error_body(message, 400, param, "invalid_value")


def _path(path: Sequence[str | int]) -> str | None:
    return _cut(".".join(map(str, path)), MAX_PARAM) or None


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
