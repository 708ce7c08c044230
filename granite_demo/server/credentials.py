"""The key of the API, and protection against guessed keys and passwords.

After five failed attempts from one address, further attempts are rejected for one minute.
"""

import secrets
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from granite_demo.access import FAILURE_WINDOW, Failures
from granite_demo.errors import VisitorLimitError

WRONG = "The API key is missing or wrong. Send the header: Authorization: Bearer KEY"
API_CLOSED = "The page of this server has a login, so its API is closed. To open it, start the server with --api-key."
LOGIN_FAILED = 400
"""The status of Gradio's login for a wrong name or password."""


class Credentials:
    """Checks the API key, and counts failed attempts with it and with the login.

    The counts are separate: a program with an old key must not prevent logins from the same address.
    """

    def __init__(self, key: str, paths: Collection[str], closed: bool = False) -> None:
        """``key`` opens ``paths`` and all below them. Without one they are open, or with ``closed`` nobody gets in."""
        self._key = key.encode()
        self._paths = paths
        self._closed = closed
        self._keys, self._logins = Failures(), Failures()

    def covers(self, path: str) -> bool:
        """Whether ``path`` needs the key."""
        return any(path == covered or path.startswith(f"{covered}/") for covered in self._paths)

    def check_key(self, headers: Headers, visitor: str) -> None:
        """Raise HTTPException unless ``headers`` have the key; 429 after too many wrong ones."""
        unauthorized = HTTPException(401, API_CLOSED if self._closed else WRONG, {"www-authenticate": "Bearer"})
        if self._closed:
            raise unauthorized
        if not self._key:
            return
        given = headers.get("authorization", "")
        if not given:
            # Not counted: the image of another site can cause it, but cannot send this header.
            raise unauthorized
        _check(self._keys, visitor)
        scheme, _, token = given.partition(" ")
        # A comparison in constant time: its duration must not show how much of the key is right.
        right = secrets.compare_digest(token.strip().encode("latin-1"), self._key)
        if not right or scheme.lower() != "bearer":
            self._keys.add(visitor)
            raise unauthorized

    def begin_login(self, visitor: str) -> None:
        """Raise HTTPException after too many wrong passwords.

        A password is compared after the body has arrived, so each attempt counts as failed until ``end_login``: many
        at once do not pass.
        """
        _check(self._logins, visitor)
        self._logins.add(visitor)

    def end_login(self, visitor: str, status: int) -> None:
        """The login was answered with ``status``."""
        if status != LOGIN_FAILED:
            self._logins.take_back(visitor)


def _check(failures: Failures, visitor: str) -> None:
    try:
        failures.check(visitor)
    except VisitorLimitError as error:
        raise HTTPException(error.status, error.user_text, {"retry-after": str(int(FAILURE_WINDOW))}) from None
