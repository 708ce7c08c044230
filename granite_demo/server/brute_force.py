"""Protection against guessed keys and passwords.

After five failed attempts from one address, further attempts are rejected for one minute.
"""

from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from granite_demo.access import FAILURE_WINDOW, Failures, visitor_of
from granite_demo.errors import VisitorLimitError
from granite_demo.server.middleware import refusal

LOGIN = "/login"
LOGIN_FAILED = 400
"""The route of Gradio for names and passwords, and its status for wrong ones."""
WRONG_KEY = 401


class SecretsGuard:
    """Answers 429 after too many failed logins or wrong keys from one address, without a check of the next one."""

    def __init__(self, app: ASGIApp, keyed: Collection[str]) -> None:
        """``keyed``: the paths that need a key, together with all below them."""
        self._app = app
        self._keyed = keyed
        # Separate: a program with an old key must not prevent logins from the same address.
        self._failures = {LOGIN_FAILED: Failures(), WRONG_KEY: Failures()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wrong = self._status_of_a_failure(scope)
        if not wrong:
            return await self._app(scope, receive, send)
        failures = self._failures[wrong]
        visitor = visitor_of((scope.get("client") or ("",))[0])
        try:
            failures.check(visitor)
        except VisitorLimitError as error:
            headers = {"retry-after": str(int(FAILURE_WINDOW))}
            return await refusal(scope, error.user_text, error.status, "rate_limit_exceeded", headers)(
                scope, receive, send
            )

        # A password is compared after the body has arrived, so each attempt counts as failed until then: many at once
        # do not pass. A key is compared immediately, and the request that it allows can take long.
        at_once = wrong == LOGIN_FAILED
        if at_once:
            failures.add(visitor)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                if at_once and message["status"] != wrong:
                    failures.take_back(visitor)
                elif not at_once and message["status"] == wrong:
                    failures.add(visitor)
            await send(message)

        await self._app(scope, receive, watched)

    def _status_of_a_failure(self, scope: Scope) -> int | None:
        if scope["type"] != "http":
            return None
        path = scope["path"].rstrip("/")
        if path == LOGIN and scope["method"] == "POST":
            return LOGIN_FAILED
        return WRONG_KEY if any(path == keyed or path.startswith(f"{keyed}/") for keyed in self._keyed) else None
