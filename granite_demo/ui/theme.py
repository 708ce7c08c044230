"""The page's theme, style sheets, scripts and logo."""

import inspect
import json
from pathlib import Path

import gradio as gr

FIRST_SCRIPTS = ("frame", "keys", "connection")
"""Scripts of ``assets/`` in the head of the document, before Gradio's own."""


def assets_dir() -> Path:
    """The assets folder: inside an installed package, beside the package in a source tree."""
    package = Path(__file__).parent.parent
    installed = package / "assets"
    return installed if installed.is_dir() else package.parent / "assets"


def load_theme() -> gr.Theme:
    """The theme of ``assets/theme.json``. Most of its values are the tokens of ``assets/style.css``, light and dark.

    Its fonts are part of Gradio, so the page needs no other server.
    """
    look = json.loads((assets_dir() / "theme.json").read_text(encoding="utf-8"))
    primary = gr.themes.Color(**look["primary_hue"], name="primary")
    neutral = gr.themes.Color(**look["neutral_hue"], name="neutral")
    # Gradio has all letters of the weights 400 and 700, but not of 600.
    font = (
        gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)),
        gr.themes.Font("system-ui"),
        gr.themes.Font("sans-serif"),
    )
    mono = (gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), gr.themes.Font("monospace"))
    theme = gr.themes.Default(
        primary_hue=primary, secondary_hue=primary, neutral_hue=neutral, font=font, font_mono=mono
    )
    both = inspect.signature(theme.set).parameters
    dark = {f"{name}_dark": value for name, value in look["values"].items() if f"{name}_dark" in both}
    return theme.set(**look["values"], **dark)


def look_files() -> dict[str, tuple[str, str]]:
    """The files of the page's look, as content type and text: one style sheet, and the scripts that run first."""
    own = assets_dir() / "style.css"
    paths = [own, *sorted(set(assets_dir().glob("*.css")) - {own})]
    style = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    first = "".join(script(f"assets/{name}.js") for name in FIRST_SCRIPTS)
    return {
        "page.css": ("text/css; charset=utf-8", style),
        "page.js": ("text/javascript; charset=utf-8", first),
    }


def script(name: str) -> str:
    """The text of a script in this folder, such as ``languages.js``."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def logo_svg() -> str:
    """The logo as markup for the page."""
    return logo_path().read_text(encoding="utf-8")


def logo_path() -> Path:
    """The file of the logo, which is also the page's icon."""
    return assets_dir() / "logo.svg"
