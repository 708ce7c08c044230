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
        found = [index for index in (text.find(stop) for stop in self._stop) if index >= 0]
        if found:
            self.hit = True
            self._held = ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The held-back text, which turned out not to be a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that begins ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
