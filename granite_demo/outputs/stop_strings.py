"""The decoded text of one answer, as it streams, to what is shown of it. Knows no tokens and no model.

``feed`` text in any cuts: the joined results are the same. ``flush`` at the end gives what was held back.
"""


class StopStrings:
    """Cuts a stream of text before the first stop string.

    Text that may be the beginning of a stop string is held back until the next characters decide.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""
        self.hit = False
        """Whether a stop string ended the text."""

    def feed(self, text: str) -> str:
        """The part of the text so far that is now certain to be shown."""
        if self.hit or not self._stop:
            return "" if self.hit else text
        text = self._held + text
        first = self._first(text)
        # Where a stop string may have begun that the end of the text cuts: it is waited for if it began first.
        begun = len(text) - max(overlap(text, stop) for stop in self._stop)
        if first is not None and first <= begun:
            self.hit = True
            self._held = ""
            return text[:first]
        self._held = text[begun:]
        return text[:begun]

    def flush(self) -> str:
        """The held-back text, up to a stop string in it that waited for a longer one to be complete."""
        held, self._held = self._held, ""
        first = self._first(held)
        self.hit = self.hit or first is not None
        return held[:first]

    def _first(self, text: str) -> int | None:
        return min((index for index in (text.find(stop) for stop in self._stop) if index >= 0), default=None)


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that begins ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
