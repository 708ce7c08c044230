"""The Documents panel's functions: from the conversation that the browser holds to a changed one."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from granite_demo.chat.conversation import dump, load, start
from granite_demo.chat.documents import MAX_DOCUMENTS
from granite_demo.types.messages import Document
from granite_demo.ui.chat import documents as panel
from granite_demo.ui.chat.documents import add_text, layout, shown_values, wire

Files = Callable[..., list[str]]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Makes uploaded files of these names and texts."""

    def make(**texts: str) -> list[str]:
        paths = []
        for name, text in texts.items():
            path = tmp_path / name.replace("_", ".")
            path.write_text(text, encoding="utf-8")
            paths.append(str(path))
        return paths

    return make


def add_files(value: Any, paths: list[str] | None) -> tuple[Any, ...]:
    return asyncio.run(panel.add_files(value, paths))


def titles(value: Any) -> list[str]:
    return [document.title for document in load(value).documents]


def holding(*names: str) -> dict[str, Any]:
    return dump(start(documents=tuple(Document(title=name, text="text") for name in names)))


def is_kept(update: Any) -> bool:
    return bool(update == gr.skip())


def test_files_are_added_and_deleted(files: Files) -> None:
    paths = files(a_txt="one", b_csv="name,age\nAnna,30\n")
    value, message, upload = add_files(holding("old"), paths)
    assert titles(value) == ["old", "a.txt", "b.csv"]
    assert load(value).documents[2].text == "- name: Anna; age: 30"
    assert (message, upload) == ("", None)
    assert not any(Path(path).exists() for path in paths)


def test_a_bad_file_does_not_keep_the_others_out(files: Files) -> None:
    paths = files(a_txt="one", b_pdf="no pdf", c_md="three")
    value, message, _ = add_files(holding(), paths)
    assert titles(value) == ["a.txt", "c.md"]
    assert '<div class="error">b.pdf is not a PDF' in message
    assert not any(Path(path).exists() for path in paths)


def test_only_bad_files_change_nothing(files: Files) -> None:
    value, message, _ = add_files(holding("old"), files(a_txt=""))
    assert titles(value) == ["old"]
    assert "a.txt is empty" in message


def test_many_errors_are_counted(files: Files) -> None:
    _, message, _ = add_files(holding(), files(**{f"a{number}_txt": "" for number in range(7)}))
    assert message.count('class="error"') == 5
    assert "3 more files could not be added." in message


def test_there_is_room_for_so_many(files: Files) -> None:
    paths = files(a_txt="one", b_txt="two")
    value, message, _ = add_files(holding(*map(str, range(MAX_DOCUMENTS - 1))), paths)
    assert len(titles(value)) == MAX_DOCUMENTS
    assert "b.txt: At most 16 documents are allowed." in message
    assert not any(Path(path).exists() for path in paths)


def test_an_upload_of_too_many_files_is_not_read_to_its_end(files: Files) -> None:
    paths = files(**{f"a{number:02}_txt": "" for number in range(MAX_DOCUMENTS)}, z_txt="fine")
    value, *_ = add_files(holding(), paths)
    assert titles(value) == []
    assert not any(Path(path).exists() for path in paths)


def test_names_are_escaped(files: Files) -> None:
    _, message, _ = add_files(holding(), files(**{"<img src=x>_exe": "x"}))
    assert "&lt;img src=x&gt;.exe cannot be read" in message


@pytest.mark.parametrize("paths", [None, []])
def test_no_files_change_nothing(paths: list[str] | None) -> None:
    value, *_ = add_files(holding("old"), paths)
    assert titles(value) == ["old"]


def test_a_damaged_conversation_has_an_error_and_is_kept(files: Files) -> None:
    paths = files(a_txt="one")
    for updates in (add_files({"head": 5}, paths), add_text({"head": 5}, "", "text")):
        assert is_kept(updates[0])
        assert "This is not a conversation" in updates[1]
    assert not Path(paths[0]).exists()


def test_pasted_text_is_added_and_the_boxes_are_emptied() -> None:
    value, *rest = add_text(None, "Notes", "some text")
    assert load(value).documents == (Document(title="Notes", text="some text"),)
    assert rest == ["", "", ""]


def test_a_text_that_cannot_be_added_stays_in_its_box() -> None:
    value, message, title, text = add_text(holding("old"), "Notes", " ")
    assert all(map(is_kept, (value, title, text)))
    assert '<div class="error">There is no text to add.' in message


def test_a_conversation_keeps_what_else_it_holds() -> None:
    before = start(system="Be kind.", title="Mine")
    value, *_ = add_text(dump(before), "a", "text")
    after = load(value)
    assert (after.id, after.system, after.title) == (before.id, "Be kind.", "Mine")
    assert after.updated >= before.updated


def test_documents_that_the_model_ignores_have_the_reason() -> None:
    reason = "This model takes no <documents>."
    assert shown_values(load(holding("a")), reason) == (
        '<div class="error">This model takes no &lt;documents&gt;.</div>',
    )
    assert shown_values(load(holding("a"))) == shown_values(start(), reason) == ("",)


def test_the_components_fit_the_functions() -> None:
    with gr.Blocks() as demo:
        holder = gr.JSON(visible=False)
        panel = layout()
        wire(panel, holder)
    assert len(panel.shown) == len(shown_values(start()))
    outputs = {fn.name: len(fn.outputs) for fn in demo.fns.values() if fn.name}
    assert outputs == {
        "add_files": len(add_files(None, [])),
        "add_text": len(add_text(None, "", "")),
    }
