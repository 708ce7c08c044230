"""The bytes that one address may send in a minute, counted before a body is read.

All work for a request takes time that grows with its size. To read JSON alone takes 20 ms for each megabyte, on the
event loop that serves everybody.
"""

import time
from collections import OrderedDict

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from granite_demo.access import visitor_of
from granite_demo.errors import VisitorLimitError
from granite_demo.server.openai.errors import error_response
from granite_demo.server.uploads import UPLOADS

MINUTE_SECONDS = 60.0
AT_ONCE = 1 / 4
"""The part of a minute's bytes that can be sent at once."""
UNKNOWN_BYTES = 2 * 2**20
"""What a body without a length counts."""
MAX_ADDRESSES = 10_000
"""Beyond it, those that sent the least recently are forgotten."""


class ByteQuota:
    """Answers 429 to an address that sends more than ``most`` bytes a minute. 0: no limit. Files are not counted."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (bytes, time)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._most and scope["type"] == "http" and scope["path"].rstrip("/") != UPLOADS:
            headers = Headers(scope=scope)
            length = headers.get("content-length", "")
            size = int(length) if length.isdigit() else UNKNOWN_BYTES if "transfer-encoding" in headers else 0
            if size and (wait := self._take(visitor_of((scope.get("client") or ("",))[0]), size)):
                text = f"Your address has sent too many bytes. Try again in {wait:.0f} s."
                answer = error_response(VisitorLimitError(text))
                answer.headers["retry-after"] = f"{wait:.0f}"
                return await answer(scope, receive, send)
        await self._app(scope, receive, send)

    def _take(self, visitor: str, size: int) -> float:
        """Count ``size`` bytes of ``visitor``. Returns 0, or the seconds until they are allowed."""
        now, most = time.monotonic(), self._most * AT_ONCE
        left, at = self._left.pop(visitor, (most, now))
        left = min(most, left + (now - at) * self._most / MINUTE_SECONDS)
        wait = max(0.0, (min(size, most) - left) * MINUTE_SECONDS / self._most)
        self._left[visitor] = (left if wait else left - size, now)
        if len(self._left) > MAX_ADDRESSES:
            self._left.popitem(last=False)
        return max(1.0, wait) if wait else 0.0
