import asyncio
import json
import re
from pathlib import Path

import gradio as gr
import pytest

from granite_demo.access import Access, Limits
from granite_demo.backends.limited import LimitedBackend
from granite_demo.errors import (
    ContextOverflowError,
    EngineBusyError,
    InvalidRequestError,
    TimeLimitError,
    VisitorLimitError,
    log_unexpected,
)
from granite_demo.ui.app import build_ui
from granite_demo.ui.languages import LANGUAGES, translations, words_dir
from tests.fakes import FakeBackend

SAME = re.compile(
    r"[\d#]*|#* ?[AB]|auto|eager|sdpa|flash_attention_\d|bfloat16|float32|.*\(bitsandbytes\)|Family · \w+"
)
"""Names, of which there is nothing to translate."""
OTHERS = {"[{", "### ", "Fake model", "The model reads one text", "Paste a text of", "Result ", "Sample "}
"""Beginnings of texts that are translated by parts or with their numbers, and of examples."""


@pytest.fixture(scope="module")
def page() -> gr.Blocks:
    backend = FakeBackend()
    return build_ui(backend, backend, Access(public=True, token="t"))


def words(language: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((words_dir() / f"{language}.json").read_text(encoding="utf-8"))
    return found


def test_every_language_has_a_file_and_every_file_is_of_a_language() -> None:
    assert sorted(path.stem for path in Path(words_dir()).iterdir()) == list(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_has_the_same_texts_with_the_same_places_for_numbers_and_names(language: str) -> None:
    table = words(language)
    assert list(table) == list(words("de"))
    assert not [key for key, text in table.items() if not text.strip()]
    places = re.compile(r"#|\{\}")
    assert not [key for key, text in table.items() if places.findall(key) != places.findall(text)]


def test_what_the_page_is_built_of_is_translated(page: gr.Blocks) -> None:
    keys = words("de").keys()
    shown = set()
    for block in page.blocks.values():
        texts = [getattr(block, name, None) for name in ("label", "info", "placeholder")]
        texts += [block.value] if isinstance(block, gr.Button | gr.Markdown) else []
        if isinstance(block, gr.Radio):
            texts += [name for name, _ in block.choices]
        if getattr(block, "show_label", True) or not isinstance(block, gr.JSON | gr.HTML):
            shown |= {text for text in texts if isinstance(text, str) and text}
    missing = {
        text
        for text in shown
        if text not in keys
        and not SAME.fullmatch(text)
        and not text.startswith(tuple(OTHERS))
        and text.removeprefix("#### ") not in keys
    }
    assert not missing


def test_gradio_is_given_no_value_of_a_box(page: gr.Blocks) -> None:
    table = translations(page).translations_dict["de"]
    assert table["Temperature"] == words("de")["Temperature"]
    assert table["Stop"] == words("de")["Stop"]
    assert "Automatic" in words("de")
    assert "Automatic" not in table  # a dropdown's value, which Gradio would translate


def limit_errors() -> list[str]:
    visitor, turn = LimitedBackend(FakeBackend(), Limits())._visitor, asyncio.Event()
    visitor.line.append(turn)
    visitor.spend(1000)
    found = []
    for limits in (Limits(running=1), Limits(tokens=1000)):
        with pytest.raises(VisitorLimitError) as caught:
            visitor.check(limits)
        found.append(str(caught.value))
    return found


def token_errors() -> list[str]:
    found = []
    for access in (Access(public=True), Access(public=True, token="t")):
        with pytest.raises(InvalidRequestError) as caught:
            access.check("guess", "somebody")
        found.append(str(caught.value))
    return found


def test_the_errors_of_a_busy_or_public_server_are_translated() -> None:
    errors = [str(error) for error in (EngineBusyError(3), TimeLimitError(300), ContextOverflowError(5000, 4096))]
    errors += [*limit_errors(), *token_errors(), re.sub(r"[0-9a-f]{8}", "{}", log_unexpected(ValueError()))]
    assert {re.sub(r"\d[\d,]*", "#", text) for text in errors} <= words("de").keys()
