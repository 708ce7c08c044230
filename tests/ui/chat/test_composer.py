"""The menu of the message box, without a page."""

from dataclasses import replace

import pytest

from granite_demo.types.messages import Switches
from granite_demo.ui.chat.composer import NO_DOCUMENTS, NO_TOOLS, menu_html
from tests.fakes import READY


@pytest.mark.parametrize(
    ("switches", "stage", "off"),
    [
        (Switches(tools=True, documents=True), "ready", []),
        (Switches(tools=True), "ready", [NO_DOCUMENTS]),
        (Switches(documents=True), "ready", [NO_TOOLS]),
        (Switches(), "ready", [NO_DOCUMENTS, NO_TOOLS]),
        (Switches(), "loading", []),
    ],
)
def test_what_the_model_lacks_is_there_and_off_with_the_reason(switches: Switches, stage: str, off: list[str]) -> None:
    menu = menu_html(replace(READY, switches=switches, stage=stage))  # type: ignore[arg-type]
    escaped = [reason.replace("'", "&#x27;") for reason in off]
    assert [reason for reason in (NO_DOCUMENTS, NO_TOOLS) if reason.replace("'", "&#x27;") in menu] == off
    assert menu.count("aria-disabled") == sum(2 if "documents" in reason else 1 for reason in escaped)
    assert menu.count("data-sheet") == 5
