"""What people and models write, so that the page shows every character of it. Pure; knows no page.

Markdown takes ``<div>`` or ``vector<int>`` for markup, which the page's sanitizer then removes or, worse, keeps: a
picture from another host, a box over the whole page. Here no ``<`` begins markup; code and formulas stay as they are.
"""

import re

from granite_demo.ui.latex import blocks

_MARK = re.compile(r"`+|\\\(|\\\[|\$\$|<")
_CLOSERS = {"\\(": "\\)", "\\[": "\\]"}
_KEPT = re.compile(r'<sup><a href="#note-[\w-]+">\[\d+\]</a></sup>|<https?://[^\s<>]+>')
"""Our own footnotes, and Markdown's links."""


def plain(text: str) -> str:
    """``text`` as Markdown without markup."""
    if "<" not in text:
        return text
    return "".join(_escaped(block) if prose else block for block, prose in blocks(text))


def _escaped(text: str) -> str:
    parts: list[str] = []
    missing: set[str] = set()
    at = 0
    while found := _MARK.search(text, at):
        mark, start = found[0], found.start()
        if mark == "<":
            kept = _KEPT.match(text, start)
            parts += [text[at:start], kept[0] if kept else "&lt;"]
            at = kept.end() if kept else start + 1
            continue
        closer = _CLOSERS.get(mark, mark)
        end = -1 if closer in missing else text.find(closer, found.end())
        if end < 0:
            missing.add(closer)  # looked for once: this stays linear
        after = found.end() if end < 0 else end + len(closer)
        parts.append(text[at:after])
        at = after
    return "".join([*parts, text[at:]])
