"""Finds the code in Markdown text: fenced blocks and code spans. It knows no markers."""

import re

_PIECE = re.compile(r"`+|~+|\n|[^`~\n]+")


class CodeSpans:
    """Whether the end of a text, which arrives in pieces of any size, is inside code.

    A fence is a line that starts with three or more back ticks or tildes. A code span ends at the end of its line at
    the latest, because a back tick that stands alone is more frequent than a span of several lines.
    """

    def __init__(self) -> None:
        self.at_line_start = True
        """Whether the line has only white space until now."""
        self._run = ""
        """The back ticks or tildes at the end of the text: more of them can follow."""
        self._run_starts_line = False
        self._fence = ""
        self._fence_begins = False
        """Whether the fence began on this line. A run on the same line shows that it is a code span."""
        self._fence_ends = False
        """Whether a run on this line ends the fence, if no text follows it on the line."""
        self._span = ""

    @property
    def inside(self) -> bool:
        """Whether the end of the text is inside code."""
        self._end_run()
        return bool(self._fence or self._span) and not self._fence_ends

    def feed(self, text: str) -> None:
        """Add the next piece."""
        for match in _PIECE.finditer(text):
            piece = match[0]
            if piece[0] in "`~":
                if self._run and self._run[0] != piece[0]:
                    self._end_run()
                self._run_starts_line = self.at_line_start if not self._run else self._run_starts_line
                self._run += piece
                self.at_line_start = False
                continue
            self._end_run()
            if piece == "\n":
                self.at_line_start, self._span = True, ""
                self._fence = "" if self._fence_ends else self._fence
                self._fence_begins = self._fence_ends = False
            elif not piece.isspace():
                self.at_line_start = self._fence_ends = False

    def _end_run(self) -> None:
        run, self._run = self._run, ""
        if not run:
            return
        fence = len(run) >= 3 and self._run_starts_line
        if self._fence_begins:
            self._fence = "" if run == self._fence else self._fence
        elif self._fence:
            self._fence_ends = fence and run.startswith(self._fence)
        elif fence:
            self._fence, self._fence_begins = run, True
        elif run[0] == "`":
            self._span = "" if self._span == run else self._span or run
