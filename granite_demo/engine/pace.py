"""How many tokens of a prompt the model reads at a time: as many as keep others waiting for a moment only."""

SECONDS_IN_COMPANY = 0.25
SECONDS_ALONE = 1.0
"""Also how long somebody who comes meanwhile waits at most."""
FIRST = 64
"""The chunk before any speed was measured."""
SMALLEST = 32
"""Fewer tokens take about as long: the weights are read once a chunk."""


class PrefillPace:
    """Sizes of chunks from the speed of the last one."""

    def __init__(self) -> None:
        self._tokens_per_second = 0.0

    def size(self, most: int, alone: bool) -> int:
        """The tokens of the next chunk, at most ``most``."""
        if not self._tokens_per_second:
            return min(FIRST, most)
        seconds = SECONDS_ALONE if alone else SECONDS_IN_COMPANY
        return min(max(int(self._tokens_per_second * seconds), SMALLEST), most)

    def measured(self, tokens: int, seconds: float) -> None:
        """A chunk took so long. Small ones, the ends of prompts, tell nothing about the speed of large ones."""
        if tokens >= SMALLEST and seconds > 0:
            self._tokens_per_second = tokens / seconds
