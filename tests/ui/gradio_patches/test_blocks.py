"""A component that does not change is not built again, and what changes arrives as it would from Gradio itself."""

import subprocess
import sys
import threading
from typing import Any

import gradio as gr
import pytest
from fastapi import FastAPI
from gradio import routes
from gradio.state_holder import SessionState
from gradio.utils import diff

from granite_demo.server.app import create_app
from granite_demo.ui.gradio_patches.blocks import POLL_SECONDS, Page, set_port, widen_queue
from tests.fakes import FakeBackend
from tests.ui.gradio_patches.contract import differs


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


async def test_of_a_growing_value_only_the_differences_are_sent() -> None:
    with Page(analytics_enabled=False) as demo:
        demo.load(lambda: None, None, [gr.JSON(), gr.Textbox()])
    [before, _] = await answered(demo, [{"question": "long", "text": "a"}, gr.skip()])
    [after, _] = await answered(demo, [{"question": "long", "text": "ab"}, gr.skip()])
    assert diff(before, after) == [["append", ["text"], "b"]]  # type: ignore[no-untyped-call]


async def test_a_handler_that_is_no_coroutine_runs_on_the_threads_of_the_page() -> None:
    names: list[str] = []

    async def waits() -> None:
        names.append(threading.current_thread().name)

    with Page(analytics_enabled=False) as demo:
        demo.load(lambda: names.append(threading.current_thread().name))
        demo.load(waits)
    for number in demo.fns:
        await demo.call_function(number, [])
    assert names[0].startswith("page")
    assert names[1] == threading.current_thread().name


async def test_too_few_values_are_an_error(blocks: gr.Blocks) -> None:
    with pytest.raises(ValueError, match="enough output values"):
        await answered(blocks, ["a", gr.skip()])


@pytest.mark.parametrize("kind", [Page, gr.Blocks])
async def test_an_output_without_an_update_is_not_built_again(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with kind(analytics_enabled=False) as demo:
        outputs = [gr.Textbox(label="A"), gr.Textbox(label="B"), gr.Number(label="N")]
        demo.load(lambda: None, None, outputs)

    built: list[Any] = []
    build = gr.Number.__init__

    def counted(*arguments: Any, **options: Any) -> None:
        built.append(arguments)
        build(*arguments, **options)

    monkeypatch.setattr(gr.Number, "__init__", counted)
    await answered(demo, [gr.skip(), "b", gr.skip()])
    what = "Blocks.postprocess_data builds each output again, also for gr.skip()"
    assert bool(built) == (kind is gr.Blocks), differs(what, "blocks.py", "blocks.py (Page)")


@pytest.mark.parametrize("kind", [Page, gr.Blocks])
async def test_an_output_that_is_shown_or_hidden_is_not_built_again(kind: Any) -> None:
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


@pytest.mark.parametrize("patch", ["set_plot_backend()", ""])
def test_no_event_waits_for_a_search_for_a_window_system(patch: str) -> None:
    around_an_event = f"""
import sys
from gradio.utils import MatplotlibBackendMananger
from granite_demo.ui.gradio_patches.blocks import set_plot_backend
{patch}
with MatplotlibBackendMananger():
    print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", around_an_event], capture_output=True, text=True, check=True)
    what = "MatplotlibBackendMananger asks matplotlib for its backend, which imports pyplot to search for one"
    assert done.stdout.split() == ["True", str(not patch)], differs(what, "utils.py", "blocks.py (set_plot_backend)")


def test_the_queue_is_wider_and_is_read_less_often() -> None:
    with gr.Blocks(analytics_enabled=False) as demo:
        gr.Textbox()
    demo.queue()
    queue: Any = demo._queue
    was = (queue.max_thread_count, queue.sleep_when_free, queue.progress_update_sleep_when_free)
    what = "Queue has max_thread_count 40, sleep_when_free of 1 ms and progress_update_sleep_when_free of 10 ms"
    assert was == (40, 0.001, 0.01), differs(what, "queueing.py", "blocks.py (widen_queue)")
    widen_queue(demo, 60)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gradio.queueing.run_coro_in_background", lambda *values: None)
        queue.start()
    what = "Queue.start makes a place for each of max_thread_count"
    assert len(queue.active_jobs) == 60, differs(what, "queueing.py", "blocks.py (widen_queue)")
    assert queue.sleep_when_free == POLL_SECONDS
    assert queue.progress_update_sleep_when_free == 1.0


def test_a_mounted_page_has_no_server_until_it_gets_a_port() -> None:
    app = FastAPI()
    gr.mount_gradio_app(app, gr.Blocks(analytics_enabled=False).queue(), path="/", ssr_mode=False)
    page: Any = app.routes[-1]
    what = "a mounted Blocks has no attribute server, which launch() sets"
    assert not hasattr(page.app.get_blocks(), "server"), differs(what, "blocks.py", "blocks.py (set_port)")
    set_port(page.app, 7860)
    assert page.app.get_blocks().server.config.port == 7860


def test_a_page_has_one_application(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[gr.Blocks] = []
    make = routes.App.create_app

    def counted(blocks: gr.Blocks, *values: Any, **named: Any) -> Any:
        made.append(blocks)
        return make(blocks, *values, **named)

    monkeypatch.setattr(routes.App, "create_app", counted)
    with gr.Blocks(analytics_enabled=False):
        pass
    assert len(made) > 1, differs("applications before a mount", "blocks.py", "blocks.py")
    del made[:]
    app = create_app(FakeBackend())
    assert len(made) == 1
    assert made[0].app is app.state.page, "Gradio's queue reads it"
