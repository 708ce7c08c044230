"""What an update leaves alone is not built anew, and what it changes arrives as it would from Gradio itself."""

import subprocess
import sys
from typing import Any

import gradio as gr
import pytest
from gradio.state_holder import SessionState

from granite_demo.ui.gradio_patches.blocks import Page


@pytest.fixture(params=[Page, gr.Blocks])
def blocks(request: pytest.FixtureRequest) -> gr.Blocks:
    """Two boxes and a number, on our page and on a plain one, which is to answer the same."""
    demo: gr.Blocks = request.param(analytics_enabled=False)
    with demo:
        outputs = [gr.Textbox(label="A"), gr.Textbox(label="B"), gr.Number(label="N")]
        demo.load(lambda: None, None, outputs)
    return demo


async def answered(demo: gr.Blocks, predictions: Any) -> list[Any]:
    return await demo.postprocess_data(demo.default_config.fns[0], predictions, None)


@pytest.mark.parametrize(
    "predictions",
    [
        ["a", gr.skip(), 3],
        [gr.skip(), gr.skip(), gr.skip()],
        gr.skip(),
        ["a", "b", 3],
        [gr.skip(), gr.update(visible=False), gr.skip()],
    ],
)
async def test_all_of_it_arrives_in_its_place(blocks: gr.Blocks, predictions: Any) -> None:
    unchanged = {"__type__": "update"}
    texts = [predictions] * 3 if isinstance(predictions, dict) else predictions
    expected = [unchanged if value == gr.skip() else value for value in texts]
    assert await answered(blocks, predictions) == expected


async def test_a_dict_of_what_changes(blocks: gr.Blocks) -> None:
    first, second, number = blocks.default_config.fns[0].outputs
    unchanged = {"__type__": "update"}
    assert await answered(blocks, {second: "b"}) == [unchanged, "b", unchanged]
    assert await answered(blocks, {number: 3, first: "a"}) == ["a", unchanged, 3]
    with blocks:
        other = gr.Textbox()
    with pytest.raises(ValueError, match="not specified|Returned component"):
        await answered(blocks, {other: "c"})


async def test_too_few_values_are_an_error(blocks: gr.Blocks) -> None:
    with pytest.raises(ValueError, match="enough output values"):
        await answered(blocks, ["a", gr.skip()])


async def test_what_is_left_alone_is_not_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    with Page(analytics_enabled=False) as demo:
        outputs = [gr.Textbox(label="A"), gr.Textbox(label="B"), gr.Number(label="N")]
        demo.load(lambda: None, None, outputs)

    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("made anew")

    monkeypatch.setattr(gr.Number, "__init__", fail)
    await answered(demo, [gr.skip(), "b", gr.skip()])


@pytest.mark.parametrize("kind", [Page, gr.Blocks])
async def test_what_is_shown_or_hidden_is_not_made_anew(kind: Any) -> None:
    with kind(analytics_enabled=False) as demo:
        outputs = [gr.Column(), gr.Button("B"), gr.Button("C"), gr.Dropdown(["a"], label="D")]
        demo.load(lambda: None, None, outputs)
    hidden, grey = gr.update(visible=False), gr.update(visible=True, interactive=False)
    named, chosen = gr.update(value="Go", visible=True), gr.update(choices=["b"], visible=True)
    expected = [hidden, grey, dict(named), {**chosen, "choices": [["b", "b"]]}]
    session = SessionState(demo)
    made = gr.Button(visible=True, interactive=False)
    for shown in ([hidden, grey, dict(named), dict(chosen)], [gr.Column(visible=False), made, named, chosen]):
        assert await demo.postprocess_data(demo.default_config.fns[0], shown, session) == expected
    assert session[outputs[3]._id].choices == [("b", "b")]
    assert (session[outputs[1]._id] is outputs[1]) == (kind is Page)


def test_no_event_waits_for_a_window_system_to_be_looked_for() -> None:
    around_an_event = """
import sys
from gradio.utils import MatplotlibBackendMananger
from granite_demo.ui.gradio_patches.blocks import settle_drawing
settle_drawing()
with MatplotlibBackendMananger():
    print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", around_an_event], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
