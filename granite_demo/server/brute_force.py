"""Nobody guesses a key or a password: who was wrong too often has to wait."""

from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from granite_demo.access import WINDOW, Failures, visitor_of
from granite_demo.errors import VisitorLimitError
from granite_demo.server.middleware import refusal

LOGIN = "/login"
LOGIN_FAILED = 400
"""Gradio's route for names and passwords, and its answer to wrong ones."""
WRONG_KEY = 401


class SecretsGuard:
    """Answers 429 where a wrong login or a wrong key came too often from one address, without looking at the next."""

    def __init__(self, app: ASGIApp, keyed: Collection[str]) -> None:
        """``keyed``: the paths that want a key, and what lies under them."""
        self._app = app
        self._keyed = keyed
        # Apart: a program with an old key must not keep whoever has the same address from logging in.
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
            headers = {"retry-after": str(int(WINDOW))}
            return await refusal(scope, error.user_text, error.status, "rate_limit_exceeded", headers)(
                scope, receive, send
            )

        # A password is compared when the body has come: whoever sends many at once is wrong until then. A key is
        # compared here and now, and what it opens may take long.
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
