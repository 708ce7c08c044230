"""Footnotes to the answers of a conversation, and the view of what supports one: markup, all of it escaped.

Footnotes are kept for a while: finding them takes time, and the page shows the same answers again at each question.
"""

import hashlib
import html
import re
import threading
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from granite_demo.chat.conversation import SentDocument, Turn
from granite_demo.chat.grounding import MAX_WORK, DocumentIndex, Sources, Support, Work, cited, fences, support
from granite_demo.types.events import Citation
from granite_demo.types.messages import Document

CONTEXT = 160
"""Characters of a document that are shown before and after a passage."""
COLORS = 6
"""Classes g0 to g5 in the style sheet."""
MAX_FOOTNOTES = 2_000_000
"""Characters of the footnotes that are kept, of all visitors."""
MAX_FOOTNOTED = 200_000
"""Characters of the answers of one conversation that get footnotes. Those after them are shown without."""

# Nothing may be put into these: inline code, formulas, links, tags.
_WHOLE = re.compile(
    r"`[^`\n]+`|\$\$[^$]{1,1000}\$\$|\\\(.{1,400}?\\\)|\\\[.{1,1000}?\\\]|\[[^\[\]\n]{0,400}\]\([^()\n]{0,400}\)|<[^<>\n]{1,400}>",
    re.DOTALL,
)
OWN_MARKS = "The marks are the model's own citations. The passages within the documents were found by matching words."
WORDS = "The marks were found by matching words, not by the model."
BOTH = "Solid lines are the model's own citations. Dashed lines were found by matching words, not by the model."

REMOVED = "This document was removed from the conversation."

_Place = tuple[int, int, int]
"""(document, start, end)"""


# By a digest: lru_cache would keep the documents themselves, which may have a megabyte each time.
class _Kept:
    """Footnotes by the digest of their answer and its documents: the ones used last, ``MAX_FOOTNOTES`` characters."""

    def __init__(self) -> None:
        self._found: OrderedDict[bytes, tuple[str, str]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, key: bytes) -> tuple[str, str] | None:
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: bytes, made: tuple[str, str]) -> None:
        with self._lock:
            if key not in self._found:
                self._found[key] = made
                self._size += sum(map(len, made))
            while self._size > MAX_FOOTNOTES:
                self._size -= sum(map(len, self._found.popitem(last=False)[1]))


_kept = _Kept()


def sent(documents: Sequence[Document]) -> tuple[SentDocument, ...]:
    """What to keep with an answer that was given ``documents``."""
    return tuple(SentDocument(title=one.title, digest=_text_digest(one)) for one in documents)


def as_sent(turn: Turn, documents: Sequence[Document]) -> list[Document]:
    """The documents as the answer ``turn`` counts them; one that is not among ``documents`` any more has no text."""
    return Footnotes(documents).given(turn)


def _text_digest(document: Document) -> str:
    return hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Footnotes:
    """Makes the footnotes of the answers of one conversation. Each document is read once, and the work is bounded."""

    def __init__(self, documents: Sequence[Document]) -> None:
        """``documents``: those of the conversation now."""
        self._documents = list(documents)
        self._indexes: dict[str, DocumentIndex] = {}
        self._work = Work(4 * MAX_WORK)
        self._left = MAX_FOOTNOTED

    @cached_property
    def _digests(self) -> dict[str, Document]:
        return {_text_digest(one): one for one in self._documents}

    @cached_property
    def _now(self) -> list[str]:
        return list(map(_text_digest, self._documents))

    def given(self, turn: Turn) -> list[Document]:
        """The documents as ``turn`` counts them; see ``as_sent``."""
        if not turn.sent:
            return self._documents
        return [self._digests.get(one.digest) or Document(one.title, "") for one in turn.sent]

    def of(self, turn: Turn) -> tuple[str, str]:
        """The answer's Markdown with a mark behind all that the model cites, and the notes that these open."""
        self._left -= len(turn.content)
        if not turn.citations or self._left < 0:
            return turn.content, ""
        names = [one.digest for one in turn.sent] if turn.sent else self._now
        key = _digest(turn, names, self._digests)
        made = _kept.get(key)
        if made is None:
            documents = self.given(turn)
            sources = Sources([self._index(name, one) for name, one in zip(names, documents, strict=True)], self._work)
            made = _footnotes(turn, documents, sources)
            _kept.put(key, made)
        return made

    def _index(self, name: str, document: Document) -> DocumentIndex:
        name = name if document.text else ""
        if name not in self._indexes:
            self._indexes[name] = DocumentIndex(document)
        return self._indexes[name]


def _digest(turn: Turn, names: Sequence[str], present: Mapping[str, Document]) -> bytes:
    """Of all that the footnotes are made of; each text with its length before it, so that none runs into the next."""
    texts = [turn.id, turn.content, listed_of(turn)]
    texts += [text for one in turn.citations for text in (one.document, f"{one.start} {one.end}")]
    texts += [text for name in names for text in (name, present[name].title if name in present else "")]
    texts += [one.title for one in turn.sent]
    digest = hashlib.sha256(f"{len(turn.citations)} {len(names)}".encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(f" {len(data)} ".encode())
        digest.update(data)
    return digest.digest()


def _footnotes(turn: Turn, documents: Sequence[Document], sources: Sources) -> tuple[str, str]:
    name = f"note-{turn.id}"
    found = cited(turn.content, sources, _citations(turn), listed_of(turn))
    numbers = _numbers(found)
    if not numbers:
        return turn.content, ""
    marks: defaultdict[int, list[int]] = defaultdict(list)
    for one in found:
        number = numbers[_place(one)]
        if number not in marks[one.end]:
            marks[one.end].append(number)
    links = {
        at: "".join(f'<sup><a href="#{name}-{number}">[{number}]</a></sup>' for number in sorted(many))
        for at, many in marks.items()
    }
    notes = "".join(
        f'<details id="{name}-{number}"><summary>[{number}] {_escaped(documents[place[0] - 1].title)}</summary>'
        f"<p>{_passage(documents[place[0] - 1], place, '')}</p></details>"
        for place, number in numbers.items()
    )
    return _inserted(turn.content, links), f'<div class="footnotes">{notes}</div>'


def listed_of(turn: Turn) -> str:
    """The list of citations that the model added after its answer."""
    return "\n".join(appendix.text for appendix in turn.appendices if appendix.kind == "citations")


def grounding_html(answer: str, documents: Sequence[Document], citations: Sequence[Citation], listed: str = "") -> str:
    """The answer beside the documents' sentences that support it, with the same numbers and colours."""
    if not answer.strip() or not documents:
        missing = "answer" if documents else "document"
        return f'<div class="grounding"><p class="note">There is no {missing} to look at yet.</p></div>'
    found = support(answer, documents, citations, listed)
    numbers = _numbers(found)
    sources = "".join(_source(documents[place[0] - 1], place, number) for place, number in numbers.items())
    return (
        f'<div class="grounding"><p class="note">{html.escape(_about(found))}</p><div class="columns">'
        f'<section><h4>Answer</h4><div class="answer">{_marked(answer, found, numbers, documents)}</div></section>'
        f"<section><h4>Documents</h4>{sources or '<p>None of their sentences is used.</p>'}</section></div></div>"
    )


def _citations(turn: Turn) -> list[Citation]:
    return [Citation(one.document, one.start, one.end) for one in turn.citations]


def _place(one: Support) -> _Place:
    return one.document, one.source_start, one.source_end


def _numbers(found: Iterable[Support]) -> dict[_Place, int]:
    """The passages, numbered from 1 as the answer comes to them."""
    places = dict.fromkeys(_place(one) for one in found)
    return {place: number for number, place in enumerate(places, start=1)}


def _about(found: Sequence[Support]) -> str:
    if not found:
        return "No sentence of the documents was found to support one of the answer."
    kinds = {one.native for one in found}
    return BOTH if len(kinds) == 2 else OWN_MARKS if True in kinds else WORDS


def _marked(answer: str, found: Sequence[Support], numbers: dict[_Place, int], documents: Sequence[Document]) -> str:
    parts = []
    at = 0
    groups: defaultdict[tuple[int, int], list[Support]] = defaultdict(list)
    for one in found:
        groups[one.start, one.end].append(one)
    for (start, end), ones in groups.items():
        many = [numbers[_place(one)] for one in ones]
        kind = "native" if ones[0].native else "lexical"
        titles = ", ".join(f"[{numbers[_place(one)]}] {documents[one.document - 1].title}" for one in ones)
        parts.append(html.escape(answer[at:start]))
        parts.append(
            f'<mark class="{_color(many[0])} {kind}" title="{html.escape(titles)}">{html.escape(answer[start:end])}'
            f"<sup>{''.join(f'[{number}]' for number in many)}</sup></mark>"
        )
        at = end
    return "".join([*parts, html.escape(answer[at:])])


def _source(document: Document, place: _Place, number: int) -> str:
    return (
        f'<div class="source"><b>[{number}] {_escaped(document.title)}</b>'
        f"<p>{_passage(document, place, _color(number))}</p></div>"
    )


def _color(number: int) -> str:
    return f"g{(number - 1) % COLORS}"


def _passage(document: Document, place: _Place, color: str) -> str:
    """The passage, marked, with some of the text around it."""
    _, start, end = place
    if not document.text:
        return REMOVED
    if start == end:
        return "The model names this document, but no sentence of it shares a word with the answer."
    before, after = document.text[max(0, start - CONTEXT) : start], document.text[end : end + CONTEXT]
    if start > CONTEXT:
        before = f"… {before.partition(' ')[2]}"
    if end + CONTEXT < len(document.text):
        after = f"{after.rpartition(' ')[0]} …"
    mark = f'<mark class="{color}">' if color else "<mark>"
    return f"{_escaped(before)}{mark}{_escaped(document.text[start:end])}</mark>{_escaped(after)}"


def _escaped(text: str) -> str:
    """``text`` in one line, so that within Markdown the markup around it does not end at a blank one."""
    return html.escape(re.sub(r"\s+", " ", text))


def _inserted(text: str, links: dict[int, str]) -> str:
    """``text`` with ``links`` at these places, or where the next one is that can take them."""
    code = fences(text)
    whole = [match.span() for match in _WHOLE.finditer(text)]
    placed: defaultdict[int, str] = defaultdict(str)
    for place in sorted(links):
        at = len(text[:place].rstrip()) or place
        if (span := _around(whole, at)) and span[0] < at < span[1]:
            at = span[1]
        gap = ""
        if (span := _around(code, at)) and at <= span[1]:
            # Before the code: whatever stands in its last line is code, too.
            at, gap = span[0], "\n\n"
        placed[at] = placed[at].removesuffix(gap) + links[place] + gap
    parts, done = [], 0
    for at in sorted(placed):
        parts += [text[done:at], placed[at]]
        done = at
    return "".join([*parts, text[done:]])


def _around(spans: Sequence[tuple[int, int]], at: int) -> tuple[int, int] | None:
    """The last of ``spans``, which do not overlap, that starts at ``at`` or before."""
    place = bisect_right(spans, at, key=lambda span: span[0])
    return spans[place - 1] if place else None
