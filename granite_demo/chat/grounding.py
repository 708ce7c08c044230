"""Finds the sentence of the documents that supports each sentence of an answer.

A citation of the model names a document, but not a place in it. The place is found by matching words. If the model
cites nothing, the document is also found in this way. The score of a document sentence S for an answer sentence A is

    score(A, S) = Σ idf(t) over the words t that are in both  /  Σ idf(t) over all words t of A
    idf(t)      = ln((N + 1) / (n(t) + ½)),  N sentences in all documents, n(t) of them with the word t

Thus it is the share of the words of A that S contains, with a high weight for rare words. Without a citation, S counts
only if

- the score is at least THRESHOLD,
- S contains all numbers and all names of A. A name is a word with a capital letter inside a sentence that the
  documents never write without a capital letter,
- A has at least three words, or S contains all of them and one is a number or a name.

Of equal scores, the shorter S wins, then the first. Case, a plural s and the commas in thousands are ignored. The
method does not understand the text: "is" and "is not" differ by one common word.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import log

from granite_demo.types.events import Citation
from granite_demo.types.messages import Document

THRESHOLD = 0.5
MAX_ANSWER = 500
"""The most sentences of an answer that are examined, because the browser can send any number."""
MAX_READ_CITATIONS, MAX_CITED = 100, 8
"""The most citations that are examined: of an answer, and of one sentence."""
MAX_WORK = 1_000_000
"""The most word positions that are compared: about 0.1 s. The rest of a longer answer has no support."""
MAX_SENTENCE = 600
"""The most characters of a sentence. A longer one is split at a space, so that a passage can be shown."""

Passage = tuple[int, int]

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
# Possessive quantifiers prevent backtracking, so the time is linear.
_END = re.compile(
    r"""(?<![。！？｡])[。！？｡]++[」』”’）]*+|(?<![.!?…])[.!?…]++["'”’»)\]*_]*+(?=\s|$)|\n\s*+""",
)
_ITEM = re.compile(r"(?:[-*+•>|]\s|\d{1,3}[.)]\s|#{1,6}\s|```|~~~)")
"""The start of a line that does not continue the line before it."""
_ALONE = re.compile(r"\s*(?:#{1,6}\s|```|~~~)")
"""The start of a line that the next line does not continue."""
_UNFINISHED = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Gen|Col|Sgt|Rev|Hon|Mt|vs|cf|e\.g|i\.e|[A-Z](?:\.[A-Z])+)"
    r"|(?<![\w'’])[A-HJ-ZÀ-Þ])$"
)
"""Text before a full stop that does not end a sentence, even if a capital letter follows: titles, initials."""
_COUNTED = re.compile(r"\b(?:no|nos|nr|p|pp|fig|figs|vol|ch|art|eq|sec|jan|feb|aug|sept|oct|nov|dec)$", re.IGNORECASE)
"""The same if a number follows."""
_NUMBERED = re.compile(r"[\s>#*+-]*\d{1,3}")
_WRAPPED = 60
"""A line with this many characters continues in the next line, unless it has an end."""

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_LISTED = re.compile(r"""<co>(\d+)</co>[^\S\n]*(?:Document[^\S\n]*(\d+))?[^\S\n]*:?[^\S\n]*([^\n]*)""")


@dataclass(frozen=True, slots=True)
class Support:
    """The part of the answer from ``start`` to ``end``, and the part of a document that supports it."""

    start: int
    end: int
    document: int
    """The number of the document, from 1."""
    source_start: int
    source_end: int
    """Equal to ``source_start`` if the model cites a document that has no common word."""
    native: bool
    """Whether the model cites the document."""
    score: float


def fences(text: str) -> list[Passage]:
    """Return the spans of fenced code in Markdown."""
    return [match.span() for match in _FENCE.finditer(text)]


def sentences(text: str) -> list[Passage]:
    """Return the spans of the sentences of ``text``, without whitespace. List items and table rows are sentences."""
    found: list[Passage] = []
    start = 0
    for match in _END.finditer(text):
        if match[0][0] == "\n" and _goes_on(text, match):
            continue
        if match[0][0] != "\n" and _is_unfinished(text, start, match):
            continue
        found += _trimmed(text, start, match.end())
        start = match.end()
    return [*found, *_trimmed(text, start, len(text))]


def _goes_on(text: str, line_break: re.Match[str]) -> bool:
    """Return whether a sentence continues in the next line."""
    at, following = line_break.start(), line_break.end()
    if line_break[0].count("\n") > 1 or _ITEM.match(text, following):
        return False
    line = text[text.rfind("\n", 0, at) + 1 : at].rstrip()
    if _ALONE.match(line):
        return False
    return text[following : following + 1].islower() or len(line) >= _WRAPPED


def _is_unfinished(text: str, start: int, stop: re.Match[str]) -> bool:
    """Return whether the sentence from ``start`` continues after this full stop."""
    after = text[stop.end() : stop.end() + 100].lstrip()[:1]
    if after.islower():
        return True
    if stop[0] != ".":
        return False
    before = text[max(start, stop.start() - 24) : stop.start()]
    if _NUMBERED.fullmatch(before.lstrip()) and after:
        return True
    return bool(_UNFINISHED.search(before) or (after.isdigit() and _COUNTED.search(before)))


def _trimmed(text: str, start: int, end: int) -> Iterator[Passage]:
    while start < end:
        cut = end
        if end - start > MAX_SENTENCE:
            space = text.rfind(" ", start + 1, start + MAX_SENTENCE)
            cut = space if space > start else start + MAX_SENTENCE
        piece = text[start:cut]
        first = start + len(piece) - len(piece.lstrip())
        last = start + len(piece.rstrip())
        if first < last:
            yield first, last
        start = cut


def support(
    answer: str, documents: Sequence[Document], citations: Sequence[Citation], listed: str = ""
) -> tuple[Support, ...]:
    """Return the support of the sentences of the answer, in order: the citations of the model, otherwise word matches.

    Fenced code is skipped. ``listed`` is the list of citations that some models add after the answer.
    """
    sources = Sources([DocumentIndex(document) for document in documents])
    spans = _prose(answer)
    cites = _resolved(answer, sources.count, citations, listed)
    found: dict[tuple[int, int, int, int], Support] = {}
    for start, end in spans:
        own = dict.fromkeys(replace(cite, span=(start, end)) for cite in cites if _overlap((start, end), cite.span))
        ones = [sources.cited(answer, cite) for cite in list(own)[:MAX_CITED]]
        if not any(ones):
            ones = [sources.matching(answer, (start, end))]
        for one in filter(None, ones):
            found.setdefault((start, one.document, one.source_start, one.source_end), one)
    return tuple(found.values())


def cited(answer: str, sources: "Sources", citations: Sequence[Citation], listed: str = "") -> tuple[Support, ...]:
    """Return the support for each citation of the model that names a document, in the order of their ends."""
    cites = _resolved(answer, sources.count, citations, listed)
    found = filter(None, (sources.cited(answer, cite) for cite in cites))
    return tuple(sorted(found, key=lambda one: one.end))


@dataclass(frozen=True, slots=True)
class _Cite:
    span: Passage
    document: int | None
    """None: the document must be found."""
    quote: str


def _resolved(answer: str, count: int, citations: Sequence[Citation], listed: str) -> list[_Cite]:
    """Return the citations of ``count`` documents.

    A citation of a span has the number of the document. A citation of a single position is for the sentence in or
    before it. It has a key of the list of the model (Granite 3.2), in which numbers start at 0 and documents are
    quoted.
    """
    quotes = {match[1]: (match[2], match[3].strip(' \t"')) for match in _LISTED.finditer(listed)}
    spans = _prose(answer)
    found = []
    for cite in citations[:MAX_READ_CITATIONS]:
        start, end = min(cite.start, len(answer)), min(cite.end, len(answer))
        if cite.start < cite.end:
            number = int(cite.document) if re.fullmatch(r"\s*[0-9]{1,9}\s*", cite.document) else 0
            if start < end and 1 <= number <= count:
                found.append(_Cite((start, end), number, ""))
        elif before := [first for first, _ in spans if first < start]:
            named, quote = quotes.get(cite.document.strip(), (None, ""))
            known = int(named) + 1 if named and not quote and int(named) < count else None
            found.append(_Cite((before[-1], start), known, quote))
    return found


def _prose(text: str) -> list[Passage]:
    """Return the sentences outside fenced code, at most ``MAX_ANSWER``."""
    code = fences(text)
    at = 0
    found = []
    for span in sentences(text):
        while at < len(code) and code[at][1] <= span[0]:
            at += 1
        if at == len(code) or not _overlap(span, code[at]):
            found.append(span)
    return found[:MAX_ANSWER]


def _overlap(one: Passage, other: Passage) -> bool:
    return one[0] < other[1] and other[0] < one[1]


class DocumentIndex:
    """The sentences of a document, and in which of them each word is."""

    def __init__(self, document: Document) -> None:
        folds: dict[str, str] = {}
        self.spans = sentences(document.text)
        self.places: defaultdict[str, list[int]] = defaultdict(list)
        self.capital: set[str] = set()
        """Words that are written with a capital letter inside a sentence."""
        self.lower: set[str] = set()
        for at, (start, end) in enumerate(self.spans):
            for place, word in enumerate(_WORD.findall(document.text, start, end)):
                folded = folds.get(word) or folds.setdefault(word, _fold(word))
                if (places := self.places[folded])[-1:] != [at]:
                    places.append(at)
                if word[0].islower():
                    self.lower.add(folded)
                elif place:
                    self.capital.add(folded)


@dataclass(slots=True)
class Work:
    """The word positions that may still be compared. The sentences that come after have no support."""

    left: int


class Sources:
    """The documents of one answer, numbered from 1, by their indexes. ``work`` can be shared by several answers."""

    def __init__(self, indexes: Sequence[DocumentIndex], work: Work | None = None) -> None:
        self._numbered = list(enumerate(indexes, start=1))
        self._count = sum(len(index.spans) for index in indexes)
        self._work = work or Work(MAX_WORK)

    @property
    def count(self) -> int:
        """The number of documents."""
        return len(self._numbered)

    def matching(self, answer: str, span: Passage) -> Support | None:
        """Find the sentence that supports the sentence ``span`` of the answer, by matching words."""
        raw = _WORD.findall(answer, *span)
        words = {_fold(word) for word in raw}
        inside = {_fold(word) for place, word in enumerate(raw) if word[0].isupper() and place}
        indexes = [index for _, index in self._numbered]
        names = {word for word in words if word in inside or any(word in index.capital for index in indexes)}
        names &= {_fold(word) for word in raw if word[0].isupper()}
        names = {word for word in names if not any(word in index.lower for index in indexes)}
        required = {word for word in words if word[0].isdigit()} | names
        if len(words) < 3 and not required:
            return None
        best = self._best(words, required, None)
        if best is None or best[-1] < (THRESHOLD if len(words) >= 3 else 1.0):
            return None
        number, start, end, score = best
        return Support(*span, number, start, end, native=False, score=score)

    def cited(self, answer: str, cite: _Cite) -> Support | None:
        """Find the sentence of the cited document with the highest score."""
        text = cite.quote or answer[slice(*cite.span)]
        best = self._best({_fold(word) for word in _WORD.findall(text)}, set(), cite.document)
        if best is not None:
            return Support(*cite.span, *best[:3], native=True, score=best[3])
        return Support(*cite.span, cite.document, 0, 0, native=True, score=0.0) if cite.document else None

    def _best(self, words: set[str], required: set[str], only: int | None) -> tuple[int, int, int, float] | None:
        """Return (document, start, end, score) of the best sentence with all ``required`` words.

        ``only`` is the number of the only document to search; None: all.
        """
        found = {
            word: [(number, index.places[word]) for number, index in self._numbered if word in index.places]
            for word in words
        }
        totals = {word: sum(len(places) for _, places in lists) for word, lists in found.items()}
        weights = {word: log((self._count + 1) / (total + 0.5)) for word, total in totals.items()}
        self._work.left -= len(words) * len(self._numbered) + sum(totals.values())
        if self._work.left < 0:
            return None
        at = {
            word: {(number, place) for number, places in lists if only in (None, number) for place in places}
            for word, lists in found.items()
        }
        allowed = set.intersection(*(at[word] for word in required)) if required else None
        scores: defaultdict[tuple[int, int], float] = defaultdict(float)
        for word, positions in at.items():
            for position in positions if allowed is None else allowed & positions:
                scores[position] += weights[word]
        if not scores:
            return None
        top = max(scores.values()) - 1e-9  # sums in another order differ in their last digits
        spans = {
            (number, place): self._numbered[number - 1][1].spans[place]
            for (number, place), score in scores.items()
            if score >= top
        }
        best = min(spans, key=lambda position: (spans[position][1] - spans[position][0], position))
        return best[0], *spans[best], min(1.0, round(scores[best] / sum(weights.values()), 6))


def _fold(word: str) -> str:
    """Return the normalized form of a word for comparisons."""
    if word[0].isdigit():
        return word.replace(",", "") if _THOUSANDS.fullmatch(word) else word
    folded = word.casefold()
    return folded[:-1] if len(folded) > 3 and folded[-1] == "s" and folded[-2] != "s" else folded
