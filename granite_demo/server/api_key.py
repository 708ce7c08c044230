"""The API key: requests without it are rejected."""

import secrets
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from granite_demo.server.openai.errors import error_response

WRONG = "The API key is missing or wrong. Send the header: Authorization: Bearer KEY"
API_CLOSED = "The page of this server has a login, so its API is closed. To open it, start the server with --api-key."


class KeyGuard:
    """Answers 401 to a request at or below ``paths`` without the right bearer key, before it reads the body."""

    def __init__(self, app: ASGIApp, key: str, paths: Collection[str], closed: bool = False) -> None:
        """Without a ``key`` the paths are open, or with ``closed`` they reject every request."""
        self._app = app
        self._key = key.encode()
        self._closed = closed
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._covers(scope["path"]):
            if self._closed or (self._key and not self._is_right(scope)):
                error = HTTPException(401, API_CLOSED if self._closed else WRONG, {"www-authenticate": "Bearer"})
                return await error_response(error)(scope, receive, send)
            if "\n" in scope["path"]:  # no route of the API matches it, so the page would answer
                return await error_response(HTTPException(404, "Not Found"))(scope, receive, send)
        await self._app(scope, receive, send)

    def _covers(self, path: str) -> bool:
        return any(path == covered or path.startswith(f"{covered}/") for covered in self._paths)

    def _is_right(self, scope: Scope) -> bool:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # A comparison in constant time: its duration must not show how much of the key is right.
        return secrets.compare_digest(given.strip().encode("latin-1"), self._key) and scheme.lower() == "bearer"
