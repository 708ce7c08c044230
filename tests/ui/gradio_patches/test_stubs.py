"""Gradio's import writes no files for editors."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.ui.gradio_patches.contract import differs

ROOT = Path(__file__).parents[3]
COMPONENT = "import gradio as gr\n\n\nclass Box(gr.Textbox):\n    pass\n"
IMPORT = """
import sys
sys.path.insert(0, sys.argv[1])
if sys.argv[2] == "skip":
    from granite_demo.ui.gradio_patches.stubs import skip_type_stubs
    skip_type_stubs()
from box import Box
assert Box().change
"""


def stub_of_a_component(folder: Path, how: str) -> bool:
    """Whether Gradio writes one for a component in ``folder``."""
    (folder / "box.py").write_text(COMPONENT)
    run = subprocess.run([sys.executable, "-c", IMPORT, str(folder), how], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return (folder / "box.pyi").is_file()


@pytest.mark.parametrize("how", ["skip", pytest.param("contract", marks=pytest.mark.release)])
def test_a_component_has_its_events_without_a_stub(tmp_path: Path, how: str) -> None:
    written = stub_of_a_component(tmp_path, how)
    assert written is (how == "contract"), differs("stubs at import", "component_meta.py", "stubs.py")
