"""The page's texts in the languages of Granite other than English, from ``assets/words/``.

A file for each language maps English texts to translations, with ``#`` for a number and ``{}`` for a name. Gradio
translates the texts that components are built with. ``languages.js`` translates all other texts in the browser.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from granite_demo.ui.theme import assets_dir, script

LANGUAGES = ("ar", "cs", "de", "es", "fr", "it", "ja", "ko", "nl", "pt", "zh")
PROPERTIES = ("label", "info", "placeholder")
"""Properties of components that Gradio translates in the browser, in addition to ``value``."""


def words_dir() -> Path:
    """The folder with a file of translations for each language, which the browser fetches."""
    return assets_dir() / "words"


def layout() -> None:
    """Add the script that translates. Call it first, so that visitors see few texts before their translation."""
    gr.HTML(f'<i data-languages="{" ".join(LANGUAGES)}"></i>', js_on_load=script("languages.js"), elem_id="words")


def translations(page: gr.Blocks) -> gr.I18n:
    """The translations, for Gradio, of the texts that the components of ``page`` are built with.

    A text that is also the value of an input is left out: Gradio would translate the value.
    """
    blocks: list[Any] = list(page.blocks.values())
    texts = {text for block in blocks for text in _texts(block)}
    texts -= {block.value for block in blocks if _is_box(block) and isinstance(block.value, str)}
    tables = {language: _words(language) for language in LANGUAGES}
    return gr.I18n(**{name: {key: table[key] for key in table.keys() & texts} for name, table in tables.items()})


def _texts(block: Any) -> Iterator[str]:
    found = [getattr(block, name, None) for name in PROPERTIES]
    if not _is_box(block):
        found.append(getattr(block, "value", None))
    return (text for text in found if isinstance(text, str))


def _is_box(block: Any) -> bool:
    return hasattr(block, "value") and not isinstance(block, gr.Button | gr.Markdown)


def _words(language: str) -> dict[str, str]:
    words: dict[str, str] = json.loads((words_dir() / f"{language}.json").read_text(encoding="utf-8"))
    return words
