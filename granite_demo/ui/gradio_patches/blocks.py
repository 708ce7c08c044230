"""The page's Blocks: cheap updates, handlers in threads of the page, a wide queue, what a launch would set."""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio import blocks
from gradio.blocks import Block, BlockContext
from gradio.data_classes import JsonData

from granite_demo.access import visitor_of
from granite_demo.ui.executor import off_loop, visitor

UNCHANGED = gr.skip()
PLAIN_PROPERTIES = {"__type__", "visible", "interactive"}
"""An update with only these keys goes to the browser as it is."""
POLL_SECONDS = 0.02
"""Between two searches for new events in Gradio's queue."""


def set_plot_backend() -> None:
    """Set matplotlib, where it is installed, to draw without a window system.

    Gradio 6.31 reads matplotlib's backend around each event. The first time, matplotlib would search for a window
    system, which takes seconds of a visitor's first question.
    """
    if find_spec("matplotlib"):
        import matplotlib

        matplotlib.use("agg")


@contextmanager
def unmounted() -> Iterator[None]:
    """Make no applications for the pages of the block. ``gr.mount_gradio_app`` makes the one that serves a page.

    Gradio 6.31 makes three more for each page, when it starts, ends and gets its queue, which takes 0.3 s.
    """
    module: Any = blocks
    with_applications, module.App = module.App, _NoApplication
    try:
        yield
    finally:
        module.App = with_applications


class _NoApplication:
    @staticmethod
    def create_app(*arguments: Any, **options: Any) -> None:
        return None


def widen_queue(page: gr.Blocks, places: int) -> None:
    """Let ``places`` events of ``page`` run at the same time. Call it after ``page.queue()``.

    Gradio 6.31 runs at most 40 events of its queue, whatever their own limits are; the others wait unseen. It also
    looks for new events every millisecond, which slows a model on the same CPU by several percent.
    """
    queue: Any = page._queue
    queue.max_thread_count = places
    queue.sleep_when_free = POLL_SECONDS
    queue.progress_update_sleep_when_free = 1.0  # no event here reports Gradio's kind of progress


def set_port(page: FastAPI, port: int) -> None:
    """Give Gradio's application ``page`` the port of this server.

    The processes that the package ``spaces`` forks close their copies of its connections, and read the port where
    Gradio 6.31 sets it at a launch, which a mounted page never has.
    """
    blocks: Any = page.get_blocks()  # type: ignore[attr-defined]
    blocks.server = SimpleNamespace(config=SimpleNamespace(port=port))


class Page(gr.Blocks):
    """Blocks that send an update of visibility only, or none, without building its component.

    Gradio 6.31 builds one for each output of each event. That takes milliseconds, and each word of an answer is an
    event with many outputs that do not change.

    Handlers that are no coroutines run on the threads of ``ui/executor.py``. Gradio runs them on the 40 threads that
    all requests of the server share, in the order of their arrival: one visitor can keep them all.
    """

    async def call_function(self, block_fn: Any, *args: Any, **options: Any) -> Any:
        """See ``gr.Blocks``."""
        request = args[2] if len(args) > 2 else options.get("requests")
        client = getattr(request, "client", None)
        visitor.set(visitor_of(client.host if client else None))
        if isinstance(block_fn, int):
            block_fn = self.fns[block_fn]
        if _is_plain(block_fn.fn):
            block_fn = copy.copy(block_fn)
            block_fn.fn = _off_loop(block_fn.fn)
        return await super().call_function(block_fn, *args, **options)

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """See ``gr.Blocks``."""
        outputs = block_fn.outputs
        if len(outputs) == 1 or not predictions or predictions == UNCHANGED:
            return await super().postprocess_data(block_fn, predictions, state)
        if isinstance(predictions, dict) and not set(predictions) <= set(outputs):
            return await super().postprocess_data(block_fn, predictions, state)  # raises an error with the reason
        values = _in_order(outputs, predictions)
        if len(values) != len(outputs):
            return await super().postprocess_data(block_fn, predictions, state)
        sent: list[Any] = [_plain(output, value) for output, value in zip(outputs, values, strict=True)]
        changed = [place for place, update in enumerate(sent) if update is None]
        if len(changed) == len(values):
            return await super().postprocess_data(block_fn, predictions, state)
        if changed:
            part = copy.copy(block_fn)
            part.outputs = [outputs[place] for place in changed]
            given = [values[place] for place in changed]
            done = await super().postprocess_data(part, given[0] if len(given) == 1 else given, state)
            for place, value in zip(changed, done, strict=True):
                # Gradio sends the differences of plain values only, and this model whole with each update.
                sent[place] = value.root if isinstance(value, JsonData) else value
        return sent


def _is_plain(handler: Any) -> bool:
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    return callable(handler) and not any(kind(handler) for kind in kinds)


def _off_loop(handler: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(handler)
    async def run(*args: Any, **options: Any) -> Any:
        return await off_loop(handler, *args, **options)

    return run


def _in_order(outputs: Sequence[Any], predictions: Any) -> list[Any]:
    """A value for each output, from a list or from a dict of the outputs that change."""
    if not isinstance(predictions, dict):
        return list(predictions)
    return [predictions.get(output, UNCHANGED) for output in outputs]


def _plain(output: Any, value: Any) -> dict[str, Any] | None:
    """The update to send, if ``value`` is one that needs no component; None for any other value."""
    if isinstance(value, Block):
        value = {**value.constructor_args, "__type__": "update"}
    if not isinstance(value, dict) or value.get("__type__") != "update":
        return None
    # A component that checks values, such as a list of choices, is built: it checks what the page sends later.
    keys = PLAIN_PROPERTIES if isinstance(output, BlockContext | gr.Button) else {"__type__"}
    return dict(value) if value.keys() <= keys and None not in value.values() else None
