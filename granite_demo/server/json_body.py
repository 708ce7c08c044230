"""Reads JSON that a stranger sent, in one way for the API and the page."""

import json
import re
from typing import Any

from starlette.exceptions import HTTPException

from granite_demo.types.messages import scrub

MAX_VALUES = 250_000
"""Values of one body. To read them takes 60 ms, in which nothing else runs: Python's parser keeps the lock of the
interpreter, so a thread would not help. A text of any length is one value, and a token ID is one."""
TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
"""A text in JSON. One without an end reaches to the end of the body, which is then read once only."""

TOO_MANY_VALUES = "The request has more than {:,} values, the maximum."


def parse_json(body: bytes) -> Any:
    """The value of ``body``, with lone surrogates replaced by U+FFFD: no later step can encode them.

    Raises JSONDecodeError, and HTTPException with status 413 for more than ``MAX_VALUES`` values.
    """
    # The first count also has the marks in texts, but takes a thousandth of the time of the parser.
    if _values(body) > MAX_VALUES and _values(TEXT.sub(b"", body)) > MAX_VALUES:
        raise HTTPException(413, TOO_MANY_VALUES.format(MAX_VALUES))
    try:
        value = json.loads(body)
        if b"\\ud" in body.lower():
            value = json.loads(scrub(json.dumps(value, ensure_ascii=False)))
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # not UTF-8, thousands of digits in a number, deep nesting
        raise json.JSONDecodeError(str(error), "", 0) from None
    return value


def _values(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")
