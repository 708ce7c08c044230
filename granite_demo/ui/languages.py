"""The page's own words in the languages that Granite speaks beside English, from ``assets/words/``.

A file for each language maps English texts to its own. In them ``#`` stands for a number and ``{}`` for a name. Gradio
translates what components are built with; ``languages.js`` does the rest in the browser, which knows the language.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from granite_demo.ui.theme import assets_dir, script

LANGUAGES = ("ar", "cs", "de", "es", "fr", "it", "ja", "ko", "nl", "pt", "zh")
PROPERTIES = ("label", "info", "placeholder")
"""What Gradio looks up in the browser, if it is a key; and ``value``."""


def words_dir() -> Path:
    """The folder that the browser fetches its language's words from."""
    return assets_dir() / "words"


def layout() -> None:
    """Place what translates in the browser. Call first, so that little is seen before."""
    gr.HTML(f'<i data-languages="{" ".join(LANGUAGES)}"></i>', js_on_load=script("languages.js"), elem_id="words")


def translations(page: gr.Blocks) -> gr.I18n:
    """For Gradio: the words of what ``page`` is built of.

    A text that is the value of a box is none of them: Gradio would translate the value.
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
