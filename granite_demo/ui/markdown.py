"""What people and models write, so that the page shows every character of it, and nothing of it is markup. Pure.

Markdown takes ``<div>`` for markup, which the page's sanitizer then removes or, worse, keeps: a form, a box over the
whole page. To find the places where it does not, such as code, takes the parser that shows the text, with all of its
exceptions. Here no parser decides: in HTML and in Markdown, ``<`` begins markup only before a letter, ``/``, ``!`` or
``?``, and ``![`` begins a picture. An invisible character comes between the two, everywhere. A script of the page
(``ui/assets/chat.js``) deletes it from what is shown, so that text can be copied.
"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator

MARK = "\u2060"
"""WORD JOINER: it has no width, and no parser gives it a meaning."""
_BEGINS = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)")
_OURS = re.compile(r'<\u2060(sup><)\u2060(a href="#note-[\w-]+">\[\d+\]<)\u2060(/a><)\u2060(/sup>)')
"""Our own footnotes. Another text that looks like one links to the same notes."""
_LINK = re.compile(r"<\u2060(https?://[^\s<>\"'=`]+>)")
"""Markdown's links. As markup, each would be an element without a meaning and without attributes."""
MAX_MATH = 200_000
"""Characters of a text in which formulas are looked for."""


def shown_text(text: str) -> str:
    """``text`` as Markdown for the page: without markup, and with its formulas marked for KaTeX."""
    return plain(prepare(text))


def plain(text: str) -> str:
    """``text`` as Markdown without markup and pictures."""
    if "<" not in text and "![" not in text:
        return text
    text = _BEGINS.sub(rf"\g<0>{MARK}", text)
    return _LINK.sub(r"<\1", _OURS.sub(r"<\1\2\3\4", text))


DELIMITERS: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
"""For ``gr.Chatbot`` and ``gr.Markdown``."""

_FENCE = re.compile(r"[ \t>]*(`{3,}|~{3,})([^\n]*)")
_BLANK = re.compile(r"[ \t>]*\n?")
_LATEX_MARK = re.compile(r"\\[\s\S]|`+|\$\$|\$")
_WORD = re.compile(r"[A-Za-z0-9]")
_ORDINALS = ("st", "nd", "rd", "th")
_LATEX_CLOSERS = {"\\(": "\\)", "\\[": "\\]", "$$": "$$"}


def prepare(text: str) -> str:
    r"""``text`` with each ``$...$`` that is math written as ``\(...\)``; code is left alone.

    Pandoc's rule: no space after the first dollar sign, none before the second one and no digit after it, no blank
    line and no dollar sign between them. What is not closed stays as it is, so that a growing answer does not flicker.
    """
    if "$" not in text or len(text) > MAX_MATH:
        return text
    cut = list(blocks(text))
    last = len(cut) - 1
    return "".join(
        _paragraph(block, grows=place == last) if prose else block for place, (block, prose) in enumerate(cut)
    )


def blocks(text: str) -> Iterator[tuple[str, bool]]:
    """Cut ``text`` into paragraphs (True) and what is between them: fenced code and blank lines (False)."""
    prose: list[str] = []
    fence = ""
    for line in text.splitlines(keepends=True):
        found = _FENCE.match(line)
        if fence:
            yield line, False
            # The closing fence is at least as long as the opening one, with nothing after it.
            if found and found[1].startswith(fence) and not found[2].strip():
                fence = ""
            continue
        opens = found is not None and not (found[1][0] == "`" and "`" in found[2])
        if not opens and not _BLANK.fullmatch(line):
            prose.append(line)
            continue
        yield "".join(prose), True
        prose.clear()
        yield line, False
        if opens and found:
            fence = found[1]
    yield "".join(prose), True


def _paragraph(text: str, grows: bool) -> str:
    if "$" not in text:
        return text
    marks = [(found.start(), found[0]) for found in _LATEX_MARK.finditer(text)]
    places: dict[str, list[int]] = defaultdict(list)
    for number, (_, mark) in enumerate(marks):
        places[mark].append(number)
    parts: list[str] = []
    done = number = 0
    while number < len(marks):
        start, mark = marks[number]
        if mark == "$":
            # A command of the formula may stand in between, or a hidden dollar sign, but no other math.
            end = next((at for at in range(number + 1, len(marks)) if not _is_command(marks[at][1])), len(marks))
            if end < len(marks) and _is_math(text, start, *marks[end]):
                parts += [text[done:start], "\\(", text[start + 1 : marks[end][0]], "\\)"]
                done = marks[end][0] + 1
                number = end + 1
                continue
        # Code and other math run to the next mark of their kind, and nothing in them counts.
        closer = mark if mark[0] == "`" else _LATEX_CLOSERS.get(mark)
        ends = places.get(closer, []) if closer else []
        place = bisect_right(ends, number)
        if closer and place == len(ends) and grows:
            break  # what comes next may close it
        number = (ends[place] if place < len(ends) else number) + 1
    return "".join([*parts, text[done:]])


def _is_command(mark: str) -> bool:
    return mark[0] == "\\" and mark[1] not in "()[]"


def _is_math(text: str, start: int, end: int, mark: str) -> bool:
    if mark != "$" or end == start + 1:
        return False
    if text[start + 1].isspace() or text[end - 1].isspace():
        return False
    # Letters of other scripts stand at a formula without a space, those of variables such as $HOME and US$ do not.
    before, after = text[max(start - 1, 0) : start], text[end + 1 : end + 3]
    return not (_WORD.match(before) or (_WORD.match(after) and after not in _ORDINALS))
