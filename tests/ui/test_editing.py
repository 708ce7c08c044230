"""Undo and redo of a text, without a page."""

from granite_demo.ui import editing
from granite_demo.ui.editing import History, redone, undone, written


def test_undo_and_redo_walk_the_states() -> None:
    history = written(written(History(), "one"), "one two")
    assert undone(history).text == "one"
    assert undone(undone(undone(history))) == History("", (), ("one two", "one"))
    assert redone(undone(undone(history))).text == "one"
    assert redone(redone(undone(undone(history)))) == history
    assert redone(history) == history


def test_what_was_undone_is_gone_after_other_words() -> None:
    history = written(undone(written(written(History(), "a"), "b")), "c")
    assert redone(history).text == "c"
    assert undone(history).text == "a"


def test_the_same_text_is_no_new_state() -> None:
    history = undone(written(History(), "a"))
    assert written(history, "") == history
    assert redone(written(history, "")).text == "a"


def test_old_states_are_forgotten() -> None:
    history = History()
    for number in range(editing.MAX_STATES + 5):
        history = written(history, str(number))
    assert len(history.past) == editing.MAX_STATES
    large = "x" * (editing.MAX_CHARACTERS // 2)
    history = written(written(written(written(history, large), large + "y"), large + "z"), "end")
    assert history.past == (large + "z",)
