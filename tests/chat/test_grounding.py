"""Tests for sentences, and for those that support an answer."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granite_demo.chat import grounding
from granite_demo.chat.grounding import MAX_SENTENCE, DocumentIndex, Sources, Support, cited, fences, sentences, support
from granite_demo.types.events import Citation
from granite_demo.types.messages import Document

CITIES = Document(
    "cities",
    "Paris is the capital of France. Berlin is the capital of Germany. "
    "The river Seine flows through Paris, which has 2,100,000 people.",
)
WATER = Document("water", "Water boils at 100 degrees. It freezes at 0 degrees. The water of the Seine is cold.")
DOCUMENTS = (CITIES, WATER)
SOURCES = Sources([DocumentIndex(one) for one in DOCUMENTS])


def pieces(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


def shown(answer: str, found: tuple[Support, ...]) -> list[tuple[str, str, bool]]:
    """Return (text of the answer, text of the document, native) of each support."""
    return [
        (answer[one.start : one.end], DOCUMENTS[one.document - 1].text[one.source_start : one.source_end], one.native)
        for one in found
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\n ", []),
        ("No end", ["No end"]),
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It is 3.5 m. So it is.", ["It is 3.5 m.", "So it is."]),
        ("Dr. Smith met J. R. R. Tolkien. They talked.", ["Dr. Smith met J. R. R. Tolkien.", "They talked."]),
        ("See fig. 3 of vol. 2. There.", ["See fig. 3 of vol. 2.", "There."]),
        ("The answer is no. There is none.", ["The answer is no.", "There is none."]),
        ("Yahoo! is old, e.g. here.", ["Yahoo! is old, e.g. here."]),
        ("The U.S. Army left.", ["The U.S. Army left."]),
        ('He said "Stop." She went.', ['He said "Stop."', "She went."]),
        ("Wait... Now.", ["Wait...", "Now."]),
        ("日本は国です。東京は首都！」はい", ["日本は国です。", "東京は首都！」", "はい"]),
        ("One\n\ntwo", ["One", "two"]),
        ("# Title\nand text", ["# Title", "and text"]),
        ("List:\n- one\n- two\n  still two\n1. three", ["List:", "- one", "- two\n  still two", "1. three"]),
        ("a short line\nAnother", ["a short line", "Another"]),
        (f"{'long ' * 15}\nLine goes on.", [f"{'long ' * 15}\nLine goes on."]),
        ("Text:\n```\ncode\n```\nafter", ["Text:", "```", "code", "```", "after"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


def test_a_long_sentence_is_split_at_a_space() -> None:
    found = pieces("word " * 300)
    assert max(map(len, found)) <= MAX_SENTENCE
    assert all(piece.startswith("word") and piece.endswith("word") for piece in found)
    assert [len(piece) for piece in pieces("x" * 1500)] == [600, 600, 300]


@given(st.text(st.sampled_from("ab A1.!?。\n\t-#`~\"'(é"), max_size=200))
def test_sentences_are_in_order_and_omit_only_whitespace(text: str) -> None:
    at = 0
    for start, end in sentences(text):
        assert at <= start < end
        assert not text[at:start].strip()
        assert text[start:end] == text[start:end].strip()
        at = end
    assert not text[at:].strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n```py\nx\n```\nb", ["```py\nx\n```"]),
        ("```\nnever ends", ["```\nnever ends"]),
        ("````\n```\n````\nb", ["````\n```\n````"]),
        ("~~~\n```\n~~~", ["~~~\n```\n~~~"]),
        ("in `line` code", []),
    ],
)
def test_fences(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in fences(text)] == expected


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        ("The capital of France is Paris.", "Paris is the capital of France."),
        ("the capital of france is paris", "Paris is the capital of France."),
        ("Berlin is Germany's capital.", "Berlin is the capital of Germany."),
        ("It has 2100000 people.", "The river Seine flows through Paris, which has 2,100,000 people."),
        ("Pure water boils at 100 degrees.", "Water boils at 100 degrees."),
        ("**Answer:** Water freezes at 0 degrees", "It freezes at 0 degrees."),
        ("Paris.", "Paris is the capital of France."),
        ("Berlin", "Berlin is the capital of Germany."),
        ("2,100,000", "The river Seine flows through Paris, which has 2,100,000 people."),
    ],
)
def test_words_in_common_are_found(answer: str, source: str) -> None:
    documents = (*DOCUMENTS, Document("more", "Everybody knows Paris, Berlin and Rome, of course."))
    (one,) = support(answer, documents, [])
    assert documents[one.document - 1].text[one.source_start : one.source_end] == source
    assert not one.native
    assert 0.5 <= one.score <= 1
    assert answer[one.start : one.end] == answer


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "...",
        "No.",
        "The capital.",
        "Water boils at 90 degrees.",
        "Paris is the capital of Germany.",
        "Rome is the capital of Italy.",
        "Water boils at 100 degrees Fahrenheit.",
        "Madrid is the capital of France and Berlin is far.",
        "I do not know what you mean by that.",
        "```\nParis is the capital of France.\n```",
    ],
)
def test_a_sentence_that_is_not_in_the_documents_has_no_support(answer: str) -> None:
    assert support(answer, DOCUMENTS, []) == ()


def test_no_documents_support_nothing() -> None:
    assert support("Paris is the capital of France.", (), [Citation("1", 0, 5)]) == ()
    assert support("Paris is the capital of France.", (Document("empty", ""),), []) == ()


def test_each_sentence_has_its_own_support() -> None:
    answer = "Water boils at 100 degrees. Nobody asked about that. Berlin is the capital of Germany."
    found = shown(answer, support(answer, DOCUMENTS, []))
    assert [(text, source) for text, source, _ in found] == [
        ("Water boils at 100 degrees.", "Water boils at 100 degrees."),
        ("Berlin is the capital of Germany.", "Berlin is the capital of Germany."),
    ]


def test_rare_words_have_a_higher_weight() -> None:
    documents = [
        Document("a", "The cat and the dog and the bird sat. A zebra ran. The cow and the hen and the pig ate.")
    ]
    (one,) = support("the zebra ran and ran", documents, [])
    assert documents[0].text[one.source_start : one.source_end] == "A zebra ran."


def test_of_equal_scores_the_shorter_sentence_wins() -> None:
    documents = [Document("a", "One day the old zebra ran away. The zebra ran. The zebra ran.")]
    (one,) = support("the zebra ran", documents, [])
    assert (one.source_start, one.source_end) == (32, 46)


def test_a_citation_wins_over_a_better_match() -> None:
    answer = "The Seine flows through Paris. It is 777 km long."
    found = support(answer, DOCUMENTS, [Citation("2", 0, 10)])
    assert shown(answer, found) == [("The Seine flows through Paris.", "The water of the Seine is cold.", True)]
    plain = support(answer, DOCUMENTS, [])
    assert [(one.document, one.native) for one in plain] == [(1, False)]


def test_a_citation_of_two_sentences_marks_both() -> None:
    answer = "Water boils at 100 degrees. It freezes at 0. Paris is the capital of France."
    found = shown(answer, support(answer, DOCUMENTS, [Citation(" 2 ", 0, 43)]))
    assert found == [
        ("Water boils at 100 degrees.", "Water boils at 100 degrees.", True),
        ("It freezes at 0.", "It freezes at 0 degrees.", True),
        ("Paris is the capital of France.", "Paris is the capital of France.", False),
    ]


def test_a_sentence_can_cite_two_documents_and_one_document_twice() -> None:
    answer = "The Seine is cold and flows through Paris."
    found = support(answer, DOCUMENTS, [Citation("1", 0, 9), Citation("2", 10, 20), Citation("2", 30, 35)])
    assert [(one.document, one.native) for one in found] == [(1, True), (2, True)]


def test_a_cited_document_without_a_common_word_has_no_place() -> None:
    (one,) = support("Nobody knows.", DOCUMENTS, [Citation("2", 0, 13)])
    assert one == Support(0, 13, 2, 0, 0, native=True, score=0.0)


@pytest.mark.parametrize("document", ["0", "3", "-1", "x", "", "1.5", "9" * 5000, "²"])
def test_a_citation_of_an_unknown_document_is_ignored(document: str) -> None:
    answer = "Paris is the capital of France."
    assert support(answer, DOCUMENTS, [Citation(document, 0, 5)]) == support(answer, DOCUMENTS, [])
    assert cited(answer, SOURCES, [Citation(document, 0, 5)]) == ()


@pytest.mark.parametrize("place", [16, 17, 27, 28])
def test_a_citation_of_a_position_is_for_the_sentence_in_or_before_it(place: int) -> None:
    answer = "Water is boiling at 100 m.  Nobody knows more."
    (one,) = support(answer, DOCUMENTS, [Citation("0", place, place)])
    assert shown(answer, (one,)) == [("Water is boiling at 100 m.", "Water boils at 100 degrees.", True)]


def test_a_citation_before_the_answer_is_ignored() -> None:
    assert support("Nobody knows.", DOCUMENTS, [Citation("0", 0, 0)]) == ()


def test_a_citation_of_a_position_uses_the_list_of_the_model() -> None:
    answer = "The Seine is in the text. So is Berlin."
    marks = [Citation("0", 25, 25), Citation("1", 39, 39)]
    quoted = '<co>0</co> Document 0: "The water of the Seine is cold."\n<co>1</co> Document 0'
    assert shown(answer, support(answer, DOCUMENTS, marks, quoted)) == [
        ("The Seine is in the text.", "The water of the Seine is cold.", True),
        ("So is Berlin.", "Berlin is the capital of Germany.", True),
    ]
    # The quotation in the list counts, not the text of the answer.
    (quoted_one,) = support("Paris is the capital.", DOCUMENTS, [Citation("0", 21, 21)], quoted)
    assert quoted_one.document == 2
    # The list numbers the documents from 0. If a number has no document, all documents are searched.
    (second,) = support(answer, DOCUMENTS, marks[:1], "<co>0</co> Document 1:")
    assert second.document == 2
    (any_one,) = support("Berlin", DOCUMENTS, [Citation("0", 6, 6)], "<co>0</co> Document 9")
    assert any_one.document == 1


def test_cited_has_one_support_for_each_citation_in_the_order_of_their_ends() -> None:
    answer = "Water boils at 100 degrees. Berlin is a capital."
    found = cited(
        answer,
        SOURCES,
        [Citation("1", 28, 999), Citation("2", 0, 27), Citation("7", 0, 27)],
    )
    assert shown(answer, found) == [
        ("Water boils at 100 degrees.", "Water boils at 100 degrees.", True),
        ("Berlin is a capital.", "Berlin is the capital of Germany.", True),
    ]


def test_the_number_of_citations_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grounding, "MAX_ANSWER", 2)
    monkeypatch.setattr(grounding, "MAX_READ_CITATIONS", 2)
    answer = "Berlin is a capital. " * 3
    assert len(cited(answer, SOURCES, [Citation("1", 0, 6)] * 3)) == 2
    assert len(support(answer, DOCUMENTS, [])) == 2
    monkeypatch.setattr(grounding, "MAX_CITED", 1)
    assert len(support("Paris", DOCUMENTS, [Citation("1", 0, 5), Citation("2", 0, 5)])) == 1


def test_repeated_citations_of_a_document_count_once() -> None:
    found = support("Paris has water.", DOCUMENTS, [*[Citation("1", 0, 5)] * 50, Citation("2", 0, 16)])
    assert [one.document for one in found] == [1, 2]


def test_the_words_compared_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grounding, "MAX_WORK", 40)
    answer = "Berlin is the capital of Germany. " * 3
    assert [one.start for one in support(answer, DOCUMENTS, [])] == [0]


def test_citations_of_the_full_answer_are_fast() -> None:
    # 0.1 s on an idle core; without the limits it takes 3 s.
    line = "The {0} of the house in {0} street was painted by its {1} owners in the year {1} with great care. "
    text = "".join(line.format(number % 700, number % 900) for number in range(4_000))
    documents = [Document(str(at), text[at * 40_000 : (at + 1) * 40_000]) for at in range(10)]
    start = time.thread_time()
    assert support(text[:2_000], documents, [Citation("1", 0, 2_000)] * 500)
    assert time.thread_time() - start < 1


@given(
    st.text(st.sampled_from("ab Paris Seine. 1\n`~é"), max_size=80),
    st.lists(st.builds(Citation, st.sampled_from("0123x"), st.integers(0, 90), st.integers(0, 90)), max_size=4),
    st.sampled_from(["", '<co>0</co> Document 1: "Seine"']),
)
def test_all_positions_exist(answer: str, citations: list[Citation], listed: str) -> None:
    for one in (*support(answer, DOCUMENTS, citations, listed), *cited(answer, SOURCES, citations, listed)):
        assert 0 <= one.start <= one.end <= len(answer)
        assert 0 <= one.source_start <= one.source_end <= len(DOCUMENTS[one.document - 1].text)
        assert 0 <= one.score <= 1


@pytest.mark.parametrize(
    "text", [". ", "a. ", "1.", "A.B.", "- ", "```\n", " ", "\n", "。", "~~~\n```\n", "a A", "'\""]
)
def test_the_time_is_linear(text: str) -> None:
    # A quadratic method takes minutes here. The limit is large enough for a busy machine.
    start = time.thread_time()
    support((text * 20_000)[:20_000], (Document("a", (text * 200_000)[:200_000]),), [])
    assert time.thread_time() - start < 5


def test_documents_of_the_largest_size_are_searched_quickly() -> None:
    # 0.1 s on an idle core.
    line = "The {0} of the house in {0} street was painted by its {1} owners in the year {1} with great care. "
    text = "".join(line.format(number % 700, number % 900) for number in range(2_000))[:200_000]
    start = time.thread_time()
    assert support(text[:2_000], (Document("a", text), Document("b", text)), [])
    assert time.thread_time() - start < 2
