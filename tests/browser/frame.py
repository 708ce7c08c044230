"""The frame of the page, for tests: its tabs, panels and sheets, and its look on a small page."""

from typing import Any

from fastapi import FastAPI
from playwright.sync_api import Page, expect

from granite_demo.ui.gradio_patches.document import LookFiles
from granite_demo.ui.theme import look_files


def add_look(app: FastAPI) -> None:
    """Give the small page ``app`` the style sheet and the first script of the real one."""
    app.add_middleware(LookFiles, files=look_files())


def open_panel(page: Page, name: str) -> None:
    """Open the panel ``sampling``, ``xray`` or ``compare``."""
    page.locator(f"#head [data-panel={name}]").click()
    expect(page.locator(f"#{name} .close")).to_be_visible()


def open_sheet(page: Page, name: str) -> None:
    """Open a sheet of the composer, such as ``tools``, from its menu or its button."""
    button = page.locator(f"#composer-menu [data-sheet={name}]")
    if not button.is_visible():
        page.locator("#composer-menu .plus").click()
    button.click()
    expect(page.locator(f"#{name}")).to_be_visible()


def close_sheet(page: Page) -> None:
    """Close the sheet that is open."""
    page.keyboard.press("Escape")
    expect(page.locator(".sheet:popover-open")).to_have_count(0)


def open_tab(page: Page, name: str) -> None:
    """Open a tab, which is in the drawer of a narrow page."""
    tab = page.locator("#tabs > .tab-wrapper").get_by_role("tab", name=name)
    if not tab.is_visible():
        page.locator("#head [data-side]").click()
    tab.click()


def attach(page: Page, *files: Any) -> None:
    """Choose files for the conversation, and wait for their chips."""
    before = page.locator("#chips .chip.text").count()
    page.locator("#composer input[type=file]").first.set_input_files(list(files))
    expect(page.locator("#chips .chip.text")).to_have_count(before + len(files))
