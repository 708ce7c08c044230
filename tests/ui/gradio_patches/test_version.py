"""One minor release of Gradio, the same everywhere."""

import re
from importlib.metadata import version
from pathlib import Path

from granite_demo.ui.gradio_patches import MINOR

ROOT = Path(__file__).parent.parent.parent.parent
NEXT = "{}.{}".format(*(int(part) + place for place, part in enumerate(MINOR.split("."))))


def test_gradio_is_the_minor_release_that_the_patches_were_read_against() -> None:
    assert version("gradio").startswith(f"{MINOR}."), (
        f"Gradio {version('gradio')} is installed; the patches were read against {MINOR}. "
        "Run tests/ui/gradio_patches, read what fails, then change MINOR in ui/gradio_patches/__init__.py."
    )


def test_the_requirement_and_the_space_name_that_release() -> None:
    assert f"gradio>={MINOR},<{NEXT}" in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    spaces = re.findall(r"sdk_version: ([\d.]+)", (ROOT / "docs/public.md").read_text(encoding="utf-8"))
    assert [name.rpartition(".")[0] for name in spaces] == [MINOR]
