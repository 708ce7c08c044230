"""Ends the streamed text of one answer at a stop string.

The text can be fed in pieces of any size: the joined results are the same. At the end, ``flush`` returns the text that
was held back.
"""


class StopStrings:
    """Cuts a stream of text before the first stop string.

    Text that can be the start of a stop string is held back until more text decides.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""
        self.hit = False
        """Whether a stop string has ended the text."""

    def feed(self, text: str) -> str:
        """Add ``text`` and return the text that is now certain to be shown."""
        if self.hit or not self._stop:
            return "" if self.hit else text
        text = self._held + text
        first = self._first(text)
        # An incomplete stop string that starts before the first complete one takes precedence, so wait for its end.
        begun = len(text) - max(overlap(text, stop) for stop in self._stop)
        if first is not None and first <= begun:
            self.hit = True
            self._held = ""
            return text[:first]
        self._held = text[begun:]
        return text[:begun]

    def flush(self) -> str:
        """Return the text that was held back, up to the first complete stop string in it."""
        held, self._held = self._held, ""
        first = self._first(held)
        self.hit = self.hit or first is not None
        return held[:first]

    def _first(self, text: str) -> int | None:
        return min((index for index in (text.find(stop) for stop in self._stop) if index >= 0), default=None)


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of ``text`` that is a proper prefix of ``stop``, in characters."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
