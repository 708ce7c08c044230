"""Which sentence of which document supports which sentence of an answer. Pure; knows neither models nor pages.

A model's own citations name a document, never a place in it: the place is found by matching words. So is all of it
where the model cites nothing. A sentence S of the documents supports a sentence A of the answer by the score

    score(A, S) = Σ idf(t) over the words t that are in both  /  Σ idf(t) over all words t of A
    idf(t)      = ln((N + 1) / (n(t) + ½)),  N sentences in all documents, n(t) of them with the word t

that is, by the share of what A says, rare words weighing most, that S says, too. Without a citation it counts only if

- the score is at least THRESHOLD,
- every number of A is in S, and every name: a word that is written with a capital within a sentence, and that the
  documents never write without one,
- A has at least three words, or else all of them are in S and one is a number or a name.

Of equal scores the shorter S wins, then the first. Words know no case, no plural s and no thousands' commas. Nothing
here understands what it reads: "is" and "is not" differ by one common word.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import log

from granite_demo.types.events import Citation
from granite_demo.types.messages import Document

THRESHOLD = 0.5
MAX_ANSWER = 500
"""Sentences of an answer that are looked at: the browser may send any number of them."""
MAX_READ_CITATIONS, MAX_CITED = 100, 8
"""Citations that are looked at, in all and of one sentence."""
MAX_WORK = 1_000_000
"""Places of words that are compared: some 0.1 s. What is left of a longer answer has no support."""
MAX_SENTENCE = 600
"""Characters. What goes on for longer is cut at a space, so that a passage can be shown."""

Passage = tuple[int, int]

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
# No run is looked at twice, whatever it is made of: the time stays linear.
_END = re.compile(
    r"""(?<![。！？｡])[。！？｡]++[」』”’）]*+|(?<![.!?…])[.!?…]++["'”’»)\]*_]*+(?=\s|$)|\n\s*+""",
)
_ITEM = re.compile(r"(?:[-*+•>|]\s|\d{1,3}[.)]\s|#{1,6}\s|```|~~~)")
"""Begins a line that continues no other."""
_ALONE = re.compile(r"\s*(?:#{1,6}\s|```|~~~)")
"""Begins a line that no other continues."""
_UNFINISHED = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Gen|Col|Sgt|Rev|Hon|Mt|vs|cf|e\.g|i\.e|[A-Z](?:\.[A-Z])+)"
    r"|(?<![\w'’])[A-HJ-ZÀ-Þ])$"
)
"""Before a full stop that ends no sentence even if a capital follows: titles, initials."""
_COUNTED = re.compile(r"\b(?:no|nos|nr|p|pp|fig|figs|vol|ch|art|eq|sec|jan|feb|aug|sept|oct|nov|dec)$", re.IGNORECASE)
"""The same before a number."""
_NUMBERED = re.compile(r"[\s>#*+-]*\d{1,3}")
_WRAPPED = 60
"""A line of so many characters goes on in the next one, unless something ends it."""

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_LISTED = re.compile(r"""<co>(\d+)</co>[^\S\n]*(?:Document[^\S\n]*(\d+))?[^\S\n]*:?[^\S\n]*([^\n]*)""")


@dataclass(frozen=True, slots=True)
class Support:
    """The answer's text from ``start`` to ``end``, and the document's that supports it."""

    start: int
    end: int
    document: int
    """Its number, from 1."""
    source_start: int
    source_end: int
    """The same as ``source_start`` where the model names a document without a word in common."""
    native: bool
    """Whether the model itself names the document."""
    score: float


def fences(text: str) -> list[Passage]:
    """Where Markdown's fenced code lies."""
    return [match.span() for match in _FENCE.finditer(text)]


def sentences(text: str) -> list[Passage]:
    """Where the sentences of ``text`` lie, without the white space around them. List items and table rows are some."""
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
    """Whether a sentence goes on in the next line."""
    at, following = line_break.start(), line_break.end()
    if line_break[0].count("\n") > 1 or _ITEM.match(text, following):
        return False
    line = text[text.rfind("\n", 0, at) + 1 : at].rstrip()
    if _ALONE.match(line):
        return False
    return text[following : following + 1].islower() or len(line) >= _WRAPPED


def _is_unfinished(text: str, start: int, stop: re.Match[str]) -> bool:
    """Whether the sentence that began at ``start`` goes on after this full stop."""
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
    """What supports the answer's sentences, in their order: what the model cites, else what matches by words.

    Code is left out. ``listed`` is the list of citations that the model adds after its answer, where it does.
    """
    sources = _Sources(documents, f"{answer} {listed}")
    spans = _prose(answer)
    cites = _resolved(answer, len(documents), citations, listed)
    found: dict[tuple[int, int, int, int], Support] = {}
    for start, end in spans:
        own = dict.fromkeys(replace(cite, span=(start, end)) for cite in cites if _overlap((start, end), cite.span))
        ones = [sources.cited(answer, cite) for cite in list(own)[:MAX_CITED]]
        if not any(ones):
            ones = [sources.matching(answer, (start, end))]
        for one in filter(None, ones):
            found.setdefault((start, one.document, one.source_start, one.source_end), one)
    return tuple(found.values())


def cited(
    answer: str, documents: Sequence[Document], citations: Sequence[Citation], listed: str = ""
) -> tuple[Support, ...]:
    """What the model's citations point to: one for each of them that names a document, by the places they end."""
    sources = _Sources(documents, f"{answer} {listed}")
    cites = _resolved(answer, len(documents), citations, listed)
    found = filter(None, (sources.cited(answer, cite) for cite in cites))
    return tuple(sorted(found, key=lambda one: one.end))


@dataclass(frozen=True, slots=True)
class _Cite:
    span: Passage
    document: int | None
    """None: one that is to be found."""
    quote: str


def _resolved(answer: str, count: int, citations: Sequence[Citation], listed: str) -> list[_Cite]:
    """What is cited, of ``count`` documents.

    A citation of some text has the document's number. One of a single place stands for the sentence that it is in or
    behind; it has a mark of the model's own list (Granite 3.2), whose numbers begin at 0 and which quotes the document.
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
    """The sentences outside fenced code."""
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


class _Sources:
    """The documents' sentences, by the words that they share with ``text``."""

    def __init__(self, documents: Sequence[Document], text: str) -> None:
        wanted = {_fold(word) for word in _WORD.findall(text)}
        folds: dict[str, str] = {}
        self._spans: list[tuple[int, int, int]] = []
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        self._bounds: dict[int, Passage] = {}
        self._left = MAX_WORK
        self._capital: set[str] = set()
        self._lower: set[str] = set()
        for number, document in enumerate(documents, start=1):
            first = len(self._spans)
            for start, end in sentences(document.text):
                at = len(self._spans)
                self._spans.append((number, start, end))
                for place, word in enumerate(_WORD.findall(document.text, start, end)):
                    folded = folds.get(word) or folds.setdefault(word, _fold(word))
                    if folded in wanted:
                        if (places := self._places[folded])[-1:] != [at]:
                            places.append(at)
                        if word[0].islower():
                            self._lower.add(folded)
                        elif place:
                            self._capital.add(folded)
            self._bounds[number] = first, len(self._spans)

    def matching(self, answer: str, span: Passage) -> Support | None:
        """The sentence that supports this one of the answer, found by its words alone."""
        raw = _WORD.findall(answer, *span)
        words = {_fold(word) for word in raw}
        names = {
            _fold(word)
            for place, word in enumerate(raw)
            if word[0].isupper() and (place or _fold(word) in self._capital)
        }
        required = {word for word in words if word[0].isdigit()} | (names - self._lower)
        if len(words) < 3 and not required:
            return None
        best = self._best(words, required, None)
        if best is None or best[1] < (THRESHOLD if len(words) >= 3 else 1.0):
            return None
        number, start, end = self._spans[best[0]]
        return Support(*span, number, start, end, native=False, score=best[1])

    def cited(self, answer: str, cite: _Cite) -> Support | None:
        """The sentence of the cited document that comes closest."""
        text = cite.quote or answer[slice(*cite.span)]
        best = self._best({_fold(word) for word in _WORD.findall(text)}, set(), cite.document)
        if best is not None:
            return Support(*cite.span, *self._spans[best[0]], native=True, score=best[1])
        return Support(*cite.span, cite.document, 0, 0, native=True, score=0.0) if cite.document else None

    def _best(self, words: set[str], required: set[str], document: int | None) -> tuple[int, float] | None:
        """(number of the sentence, score) with the ``required`` words, within one document or all of them."""
        found = {word: self._places.get(word, []) for word in words}
        weights = {word: log((len(self._spans) + 1) / (len(places) + 0.5)) for word, places in found.items()}
        if document is not None:
            ends = self._bounds[document]
            found = {word: places[slice(*(bisect_left(places, end) for end in ends))] for word, places in found.items()}
        self._left -= sum(map(len, found.values()))
        if required:
            allowed = set.intersection(*(set(found[word]) for word in required))
            found = {word: list(allowed.intersection(places)) for word, places in found.items()}
        scores: defaultdict[int, float] = defaultdict(float)
        for word, places in found.items() if self._left >= 0 else ():
            for at in places:
                scores[at] += weights[word]
        if not scores:
            return None
        top = max(scores.values()) - 1e-9  # sums of the same weights in another order differ in their last digits
        equals = [at for at, score in scores.items() if score >= top]
        best = min(equals, key=lambda at: (self._spans[at][2] - self._spans[at][1], at))
        return best, min(1.0, round(scores[best] / sum(weights.values()), 6))


def _fold(word: str) -> str:
    """The word by which others are compared with this one."""
    if word[0].isdigit():
        return word.replace(",", "") if _THOUSANDS.fullmatch(word) else word
    folded = word.casefold()
    return folded[:-1] if len(folded) > 3 and folded[-1] == "s" and folded[-2] != "s" else folded
