"""Who may use the API: whoever sends the key, where there is one."""

import secrets
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from granite_demo.server.openai.errors import error_response

WRONG = "A valid API key is needed. Send it as: Authorization: Bearer KEY"
CLOSED = "This server's page wants a login, and its API is closed. It opens with a key: start it with --api-key."


class KeyGuard:
    """Answers 401 to what lies under one of ``paths`` without the right bearer key, before anything is read."""

    def __init__(self, app: ASGIApp, key: str, paths: Collection[str], closed: bool = False) -> None:
        """``key``: empty lets everybody in, or with ``closed`` nobody."""
        self._app = app
        self._key = key.encode()
        self._closed = closed
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._covers(scope["path"]):
            if self._closed or (self._key and not self._is_right(scope)):
                error = HTTPException(401, CLOSED if self._closed else WRONG, {"www-authenticate": "Bearer"})
                return await error_response(error)(scope, receive, send)
            if "\n" in scope["path"]:  # no route of the API matches it, so the page would get it
                return await error_response(HTTPException(404, "Not Found"))(scope, receive, send)
        await self._app(scope, receive, send)

    def _covers(self, path: str) -> bool:
        return any(path == covered or path.startswith(f"{covered}/") for covered in self._paths)

    def _is_right(self, scope: Scope) -> bool:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # Compared in a time that tells nothing of how much of it is right.
        return secrets.compare_digest(given.strip().encode("latin-1"), self._key) and scheme.lower() == "bearer"
