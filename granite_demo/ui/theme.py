"""The page's theme, style sheets, scripts and logo."""

import json
from pathlib import Path

import gradio as gr


def assets_dir() -> Path:
    """The assets folder: inside an installed package, beside the package in a source tree."""
    package = Path(__file__).parent.parent
    installed = package / "assets"
    return installed if installed.is_dir() else package.parent / "assets"


def load_theme() -> gr.Theme:
    """The theme of ``assets/theme.json``. Its fonts are part of Gradio, so the page needs no other server."""
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
    return theme.set(**look["values"])


def style_paths() -> list[Path]:
    """The style sheets beside the theme, the page's own first."""
    own = assets_dir() / "style.css"
    return [own, *sorted(set(assets_dir().glob("*.css")) - {own})]


def script(name: str) -> str:
    """The text of a script in this folder, such as ``languages.js``."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def logo_svg() -> str:
    """The logo as markup for the page."""
    return logo_path().read_text(encoding="utf-8")


def logo_path() -> Path:
    """The file of the logo, which is also the page's icon."""
    return assets_dir() / "logo.svg"
