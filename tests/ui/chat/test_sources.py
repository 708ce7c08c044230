"""Footnotes and the grounding view, as markup."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granite_demo.chat.conversation import Turn
from granite_demo.chat.grounding import DocumentIndex, Support, cited
from granite_demo.types.events import Appendix, Citation
from granite_demo.types.messages import Document
from granite_demo.ui.chat import sources
from granite_demo.ui.chat.sources import (
    BOTH,
    CONTEXT,
    OWN_MARKS,
    REMOVED,
    WORDS,
    Footnotes,
    as_sent,
    grounding_html,
    sent,
)

CITIES = Document("cities <b>", "Paris is the capital of France. Berlin is the capital of Germany.")
WATER = Document("water", "Water boils\n\nat & <100> degrees. It freezes at 0 degrees.")
DOCUMENTS = (CITIES, WATER)


def turn(content: str, *citations: tuple[str, int, int], listed: str = "") -> Turn:
    cites = tuple(Citation(document=document, start=start, end=end) for document, start, end in citations)
    appendices = (Appendix(kind="hallucinations", text="x"), Appendix(kind="citations", text=listed)) if listed else ()
    return Turn(id="t1", role="assistant", content=content, citations=cites, appendices=appendices)


def footnotes(turn: Turn, documents: Sequence[Document]) -> tuple[str, str]:
    return Footnotes(documents).of(turn)


def mark(*numbers: int) -> str:
    return "".join(f'<sup><a href="#note-t1-{number}">[{number}]</a></sup>' for number in numbers)


def test_an_answer_without_citations_stays_as_it_is() -> None:
    assert footnotes(turn("Paris is the capital of France."), DOCUMENTS) == ("Paris is the capital of France.", "")
    assert footnotes(turn("Paris", ("9", 0, 5)), DOCUMENTS) == ("Paris", "")
    assert footnotes(turn("Paris", ("1", 0, 5)), ()) == ("Paris", "")


def test_marks_stand_behind_what_is_cited_and_open_its_passage() -> None:
    text = "Berlin is the capital. It all freezes."
    shown, foot = footnotes(turn(text, ("1", 0, 22), ("2", 23, 38)), DOCUMENTS)
    assert shown == f"Berlin is the capital.{mark(1)} It all freezes.{mark(2)}"
    assert foot == (
        '<div class="footnotes">'
        '<details id="note-t1-1"><summary>[1] cities &lt;b&gt;</summary>'
        "<p>Paris is the capital of France. <mark>Berlin is the capital of Germany.</mark></p></details>"
        '<details id="note-t1-2"><summary>[2] water</summary>'
        "<p>Water boils at &amp; &lt;100&gt; degrees. <mark>It freezes at 0 degrees.</mark></p></details></div>"
    )


def test_a_citation_keeps_its_document_and_shows_if_it_was_removed() -> None:
    answer = turn("It all freezes.", ("2", 0, 15)).model_copy(update={"sent": sent(DOCUMENTS)})
    _, before = footnotes(answer, DOCUMENTS)
    assert "<mark>It freezes at 0 degrees.</mark>" in before
    assert footnotes(answer, [WATER])[1] == before
    _, after = footnotes(answer, [CITIES])
    assert f"[1] water</summary><p>{REMOVED}</p>" in after
    view = grounding_html(answer.content, as_sent(answer, []), [Citation("2", 0, 15)])
    assert REMOVED in view
    assert "water" in view


def test_an_answer_that_does_not_know_its_documents_counts_those_that_there_are() -> None:
    assert as_sent(turn("Paris"), DOCUMENTS) == list(DOCUMENTS)


def test_the_same_passage_has_one_note_and_one_mark_a_place() -> None:
    text = "Berlin, the capital. Berlin again."
    shown, foot = footnotes(turn(text, ("1", 0, 20), ("1", 0, 20), ("1", 21, 34)), DOCUMENTS)
    assert shown == f"Berlin, the capital.{mark(1)} Berlin again.{mark(1)}"
    assert foot.count("<details") == 1


def test_a_mark_of_the_models_list_is_looked_up() -> None:
    listed = '<co>0</co> Document 1: "It freezes at 0 degrees."'
    shown, foot = footnotes(turn("This is so. Next.", ("0", 11, 11), listed=listed), DOCUMENTS)
    assert shown == f"This is so.{mark(1)} Next."
    assert "<mark>It freezes at 0 degrees.</mark>" in foot


def test_a_document_without_a_common_word_is_named() -> None:
    _, foot = footnotes(turn("Nobody knows.", ("2", 0, 13)), DOCUMENTS)
    assert "<summary>[1] water</summary>" in foot
    assert "no sentence of it shares a word" in foot
    assert "<mark>" not in foot


@pytest.mark.parametrize(
    ("text", "end", "expected"),
    [
        ("Paris  \nnext", 8, f"Paris{mark(1)}  \nnext"),
        ("Paris `is it` so", 10, f"Paris `is it`{mark(1)} so"),
        ("Paris \\(a + b\\) so", 10, f"Paris \\(a + b\\){mark(1)} so"),
        ("Paris $$a + b$$ so", 10, f"Paris $$a + b$${mark(1)} so"),
        ("Paris [is](http://x/y) so", 12, f"Paris [is](http://x/y){mark(1)} so"),
        ("Paris <b title='x'> so", 12, f"Paris <b title='x'>{mark(1)} so"),
        ("Paris:\n```\nx = 1\n```\nso", 13, f"Paris:\n{mark(1)}\n\n```\nx = 1\n```\nso"),
        ("Paris:\n```\nx = 1\n```\nso", 20, f"Paris:\n{mark(1)}\n\n```\nx = 1\n```\nso"),
        ("Paris:\n```\nx = 1\n```\nso", 21, f"Paris:\n{mark(1)}\n\n```\nx = 1\n```\nso"),
        ("Paris:\n```\nx = 1", 16, f"Paris:\n{mark(1)}\n\n```\nx = 1"),
        ("Paris", 99, f"Paris{mark(1)}"),
    ],
    ids=[
        "space",
        "code",
        "latex",
        "display",
        "link",
        "tag",
        "in fence",
        "fence's end",
        "after it",
        "no end",
        "too far",
    ],
)
def test_marks_break_nothing(text: str, end: int, expected: str) -> None:
    assert footnotes(turn(text, ("1", 0, end)), DOCUMENTS)[0] == expected


@given(
    st.text(st.sampled_from("aB `~$\n.[](<>)\\"), max_size=60),
    st.lists(st.tuples(st.sampled_from("12"), st.integers(0, 60), st.integers(0, 60)), max_size=4),
)
def test_only_marks_and_blank_lines_are_added(text: str, citations: list[tuple[str, int, int]]) -> None:
    shown, _ = footnotes(turn(text, *citations), DOCUMENTS)
    without = re.sub(r'(<sup><a href="#note-t1-\d+">\[\d+\]</a></sup>)+(\n\n(?= {0,3}(```|~~~)))?', "", shown)
    assert without.replace("\n", "") == text.replace("\n", "")


def test_footnotes_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_kept", sources._Kept())
    asked: list[str] = []

    def counted(answer: str, *rest: Any) -> tuple[Support, ...]:
        asked.append(answer)
        return cited(answer, *rest)

    monkeypatch.setattr(sources, "cited", counted)
    first = footnotes(turn("Berlin", ("1", 0, 6)), DOCUMENTS)
    # The page sends the texts again with each question.
    again = footnotes(turn("Berlin", ("1", 0, 6)), [Document(one.title, f"{one.text} "[:-1]) for one in DOCUMENTS])
    assert (again, asked) == (first, ["Berlin"])
    monkeypatch.setattr(sources, "MAX_FOOTNOTES", sum(map(len, first)) + 10)
    for name in ("Paris", "Water", "Berlin"):
        footnotes(turn(name, ("1", 0, 6)), DOCUMENTS)
    assert asked == ["Berlin", "Paris", "Water", "Berlin"]


def test_each_document_is_read_once_for_all_answers_of_a_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_kept", sources._Kept())
    read: list[str] = []

    class Counted(DocumentIndex):
        def __init__(self, document: Document) -> None:
            read.append(document.title)
            super().__init__(document)

    monkeypatch.setattr(sources, "DocumentIndex", Counted)
    of_all = Footnotes(DOCUMENTS)
    for order in (DOCUMENTS, DOCUMENTS[::-1], [WATER, WATER]):
        assert of_all.of(turn("It all freezes.", ("1", 0, 15)).model_copy(update={"sent": sent(order)}))[1]
    assert sorted(read) == sorted(one.title for one in DOCUMENTS)


def test_beyond_a_limit_answers_have_no_footnotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_FOOTNOTED", 10)
    of_all = Footnotes(DOCUMENTS)
    shown = [of_all.of(turn("Berlin", ("1", 0, 6)))[1] for _ in range(2)]
    assert shown[0]
    assert not shown[1]


def test_nothing_that_footnotes_show_is_mixed_up() -> None:
    listed = '<co>0</co> Document 1: "Water boils"'
    answers = {
        footnotes(asked, documents)
        for asked, documents in (
            (turn("Berlin freezes", ("1", 0, 6)), DOCUMENTS),
            (turn("Berlin freezes", ("1", 0, 6)).model_copy(update={"id": "t2"}), DOCUMENTS),
            (turn("Berlin freezes", ("2", 0, 6)), DOCUMENTS),
            (turn("Berlin freezes", ("2", 0, 14)), DOCUMENTS),
            (turn("Berlin freezes", ("0", 14, 14), listed='<co>0</co> Document 0: "Berlin"'), DOCUMENTS),
            (turn("Berlin freezes", ("0", 14, 14), listed=listed), DOCUMENTS),
            (turn("Berlin freezes", ("1", 0, 6)), [Document("other", CITIES.text)]),
            (turn("Berlin freezes", ("1", 0, 6)), [Document(CITIES.title, "Berlin")]),
        )
    }
    assert len(answers) == 8


def test_a_note_has_no_blank_line_that_would_end_it() -> None:
    _, foot = footnotes(turn("Water boils at degrees.", ("2", 0, 23)), DOCUMENTS)
    assert "\n" not in foot


def test_a_long_document_is_shown_around_the_passage() -> None:
    text = f"{'before ' * 100}ends. The zebra ran. Then {'after ' * 100}"
    _, foot = footnotes(turn("A zebra ran", ("1", 0, 11)), [Document("long", text)])
    passage = re.search(r"<p>(.*)</p>", foot)
    assert passage is not None
    before, after = passage[1].split("<mark>The zebra ran.</mark>")
    assert before.startswith("… before")
    assert after.endswith("after …")
    assert max(len(before), len(after)) <= CONTEXT + 4


def test_the_view_says_that_words_were_matched() -> None:
    view = grounding_html("<Well>. Berlin is the capital of Germany. Nobody <knows> more.", DOCUMENTS, [])
    assert WORDS in view
    assert (
        '<div class="answer">&lt;Well&gt;. '
        '<mark class="g0 lexical" title="[1] cities &lt;b&gt;">Berlin is the capital of Germany.<sup>[1]</sup></mark>'
        " Nobody &lt;knows&gt; more.</div>"
    ) in view
    assert (
        "<b>[1] cities &lt;b&gt;</b><p>Paris is the capital of France. "
        '<mark class="g0">Berlin is the capital of Germany.</mark></p>'
    ) in view


def test_the_view_shows_the_citations_of_the_model() -> None:
    view = grounding_html("Berlin is a capital.", DOCUMENTS, [Citation("1", 0, 20), Citation("2", 0, 20)])
    assert OWN_MARKS.replace("'", "&#x27;") in view
    assert 'class="g0 native" title="[1] cities &lt;b&gt;, [2] water">Berlin is a capital.<sup>[1][2]</sup>' in view
    assert "no sentence of it shares a word" in view


def test_the_view_distinguishes_citations_and_matches() -> None:
    answer = "Berlin is a capital. Paris is the capital of France."
    view = grounding_html(answer, DOCUMENTS, [Citation("1", 0, 20)])
    assert BOTH.replace("'", "&#x27;") in view
    assert 'class="g0 native"' in view
    assert 'class="g1 lexical"' in view


def test_the_view_of_no_support_shows_the_answer_plain() -> None:
    view = grounding_html("Nobody knows.", DOCUMENTS, [])
    assert "No sentence of the documents" in view
    assert '<div class="answer">Nobody knows.</div>' in view
    assert "<mark" not in view


def test_the_view_of_nothing_says_so() -> None:
    assert "There is no answer" in grounding_html(" ", DOCUMENTS, [])
    assert "There is no document" in grounding_html("Paris", (), [])


@given(st.text(st.sampled_from("aB <>&\"'.\n`"), max_size=60), st.text(st.sampled_from("aB <>&\"'."), max_size=60))
def test_the_view_keeps_the_answer_and_escapes_everything(answer: str, text: str) -> None:
    view = grounding_html(answer, [Document(text[:5], text)], [Citation("1", 0, 9)])
    assert set(re.findall(r"<(\w+)", view)) <= {"div", "p", "section", "h4", "mark", "sup", "b"}
    assert view.count("<") == view.count(">")
