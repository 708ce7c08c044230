"""Converts the exceptions of the openai package to errors whose text says what to do."""

import json
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from granite_demo.errors import (
    ContextOverflowError,
    GraniteDemoError,
    InvalidRequestError,
    RemoteBusyError,
    RemoteDownError,
    RemoteError,
)

MAX_MESSAGE = 300
"""The most characters that are shown of the message of a server."""
OVERFLOWS = re.compile(
    r"context (length|size|window)|context holds|maximum model length|exceed_context|too many tokens"
)
CONTEXT_LIMIT = re.compile(
    r"(?:context (?:length|size|window)(?: is| of)?|context holds|n_ctx\W+|maximum model length of)\D{0,3}([\d,]+)"
)
PROMPT_LENGTH = re.compile(
    r"prompt has ([\d,]+)|([\d,]+) in the messages|n_prompt_tokens\W+([\d,]+)|([\d,]+) input tokens"
)
UNSUPPORTED = re.compile(r"(?i)unexpected|unsupported|not supported|unknown|unrecogni[sz]ed|extra|not permitted")
TRY = "Try again in a minute."


class TooLongError(InvalidRequestError):
    """Prompt and answer are too long for the server. It does not give the numbers for a ContextOverflowError."""


def explain(error: Exception, where: str, model: str, secret: str = "") -> GraniteDemoError:
    """Convert the ``error`` of a request to the server at ``where``. The text never contains ``secret``."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _refused(error.status_code, message_of(error, secret), where, model)
    # The class is compared by name, because the HTTP library below openai can change.
    if isinstance(error, openai.APITimeoutError) and type(error.__cause__).__name__ != "ConnectTimeout":
        # The server has the request and is not down. A second request would only add to its load.
        return RemoteBusyError(f"The server at {where} did not answer in time. It may be overloaded. {TRY}")
    if isinstance(error, openai.APIConnectionError):
        return RemoteDownError(_unreachable(error, where))
    if isinstance(error, openai.APIError):  # an error event in the stream
        message = message_of(error, secret)
        return _too_long(message) or RemoteError(f"The server at {where} reports: {message}", elsewhere=True)
    return RemoteError(
        f"The server at {where} does not answer like OpenAI's API. Check that the address is that of the API, "
        "such as http://host:8000/v1.",
        elsewhere=True,
    )


def cut_off(error: GraniteDemoError) -> RemoteError:
    """Return the error for an ``error`` after the first token."""
    return RemoteError(f"The answer was cut off. The text so far is kept. {error.user_text}")


def message_of(error: Any, secret: str = "") -> str:
    """Return the message of the server as one short line of plain text."""
    message = _find_message(error.body) or str(error.message)
    if "<html" in message.lower() or "<!doctype" in message.lower():
        message = "The server sent a web page instead of an answer."
    if secret:
        message = message.replace(secret, "…")
    message = " ".join("".join(letter if letter.isprintable() else " " for letter in message).split())
    return message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}…"


def rejected(error: Exception) -> bool:
    """Return whether the cause of ``error`` can be a field of the request that the server does not accept."""
    import openai

    return isinstance(error, openai.APIStatusError) and error.status_code in (400, 422)


def names(error: Any, field: str) -> bool:
    """Return whether the error of the server names ``field``."""
    return field in _text_of(error)


def unsupported(error: Exception, field: str) -> bool:
    """Return whether the server does not know ``field`` at all. False if only its value is wrong."""
    return rejected(error) and names(error, field) and bool(UNSUPPORTED.search(_text_of(error)))


def _text_of(error: Any) -> str:
    return f"{error} {getattr(error, 'body', '')}"


def _find_message(body: Any) -> str:
    if isinstance(body, str):
        return body
    if isinstance(body, dict):
        for name in ("message", "error", "detail"):
            if body.get(name):
                found = _find_message(body[name])
                numbers = {key: body[key] for key in ("n_prompt_tokens", "n_ctx") if key in body}
                return f"{found} {json.dumps(numbers)}" if numbers else found
    return json.dumps(body, default=str) if body else ""


def _refused(status: int, message: str, where: str, model: str) -> GraniteDemoError:
    if status in (401, 403):
        return RemoteError(
            f"The server at {where} rejects the key. Set the right one with --backend-key or GRANITE_DEMO_BACKEND_KEY."
        )
    if status == 404:
        what = f"has no model {model!r:.200}, or the address is wrong" if model else "does not know this address"
        text = f"The server at {where} {what}: {_as_sentence(message)} Choose another model, or check the address."
        return RemoteError(text, elsewhere=True)
    if status in (429, 503):
        return RemoteBusyError(f"The server at {where} is busy: {_as_sentence(message)} {TRY}")
    if status in (400, 413, 422):
        return _too_long(message) or InvalidRequestError(f"The server at {where} rejects the request: {message}")
    return RemoteError(f"The server at {where} failed ({status}): {_as_sentence(message)} {TRY}", elsewhere=True)


def _as_sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def _too_long(message: str) -> InvalidRequestError | None:
    if not OVERFLOWS.search(message):
        return None
    context, prompt = CONTEXT_LIMIT.search(message), PROMPT_LENGTH.search(message)
    if context and prompt:
        holds, has = (_number(found) for found in (context, prompt))
        if has >= holds:
            return ContextOverflowError(has, holds)
    return TooLongError(
        f"Prompt and answer are too long for the server: {_as_sentence(message)} "
        "Shorten the prompt, or lower Max new tokens."
    )


def _number(found: re.Match[str]) -> int:
    digits = next(group for group in found.groups() if group).replace(",", "")
    return int(digits[:12]) if digits else 0


def _unreachable(error: BaseException, where: str) -> str:
    causes = list(_causes(error))
    if any(isinstance(cause, ssl.SSLError) or "[SSL" in str(cause) for cause in causes):
        return f"The certificate of {where} cannot be verified, or the server does not use TLS. Check the address."
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"The host name in {where} cannot be found. Check the address and the network."
    return f"The server at {where} does not answer. Check that it is running."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for one in error.exceptions:
                yield from _causes(one)
        error = error.__cause__ or error.__context__
