"""Undo and redo of a text, without a page."""

from dataclasses import replace

from granite_demo.ui.completion import edit_history
from granite_demo.ui.completion.edit_history import History, accepted, redone, seen, undone, written


def test_undo_and_redo_walk_the_states() -> None:
    history = written(written(History(), "one"), "one two")
    assert undone(history).text == "one"
    assert undone(undone(undone(history))) == History("", (), ("one two", "one"), put=2)
    assert redone(undone(undone(history))).text == "one"
    assert redone(redone(undone(undone(history)))) == replace(history, put=4)
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
    for number in range(edit_history.MAX_STATES + 5):
        history = written(history, str(number))
    assert len(history.past) == edit_history.MAX_STATES
    large = "x" * (edit_history.MAX_CHARACTERS // 2)
    history = written(written(written(written(history, large), large + "y"), large + "z"), "end")
    assert history.past == (large + "z",)


def test_a_text_of_before_is_not_written_after_what_came_then() -> None:
    history = written(History(), "one")
    after = accepted(history, "one two")
    assert seen(after, "one", history.put) == after
    assert seen(after, "one two!", after.put).past == ("", "one", "one two")
    back = undone(after)
    assert seen(back, "one two", after.put) == back
    assert redone(back).put > back.put > after.put


def test_a_text_that_outlived_the_server_is_kept() -> None:
    assert seen(History(), "kept", 7).text == "kept"
