"""Reads JSON that a stranger sent, in one way for the API and the page."""

import json
from typing import Any

from granite_demo.types.messages import scrub


def parse_json(body: bytes) -> Any:
    """The value of ``body``, with lone surrogates replaced by U+FFFD: no later step can encode them.

    Raises JSONDecodeError.
    """
    try:
        value = json.loads(body)
        if b"\\ud" in body.lower():
            value = json.loads(scrub(json.dumps(value, ensure_ascii=False)))
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # not UTF-8, thousands of digits in a number, deep nesting
        raise json.JSONDecodeError(str(error), "", 0) from None
    return value
