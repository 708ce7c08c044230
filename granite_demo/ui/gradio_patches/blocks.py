"""The page's Blocks, made cheap for streams: what an update leaves alone costs nothing."""

import copy
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import gradio as gr
from gradio.blocks import Block, BlockContext

UNCHANGED = gr.skip()
PLAIN = {"__type__", "visible", "interactive"}
"""What a component takes as it is: an update of no more needs none to be built."""


def settle_drawing() -> None:
    """Have matplotlib, where it is installed, draw without a window system.

    Gradio 6.31 asks it around each event, and the first time it would look for one: seconds of somebody's question.
    """
    if find_spec("matplotlib"):
        import matplotlib

        matplotlib.use("agg")


class Page(gr.Blocks):
    """Blocks that do not build a component anew, as Gradio 6.31 does, for each output that is ``gr.skip()``,
    shown or hidden. That takes milliseconds each time, and each word of an answer is such an update.
    """

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """See ``gr.Blocks``."""
        outputs = block_fn.outputs
        if len(outputs) == 1 or not predictions or predictions == UNCHANGED:
            return await super().postprocess_data(block_fn, predictions, state)
        if isinstance(predictions, dict) and not set(predictions) <= set(outputs):
            return await super().postprocess_data(block_fn, predictions, state)  # which says what is wrong
        values = _in_order(outputs, predictions)
        if len(values) != len(outputs):
            return await super().postprocess_data(block_fn, predictions, state)
        shown: list[Any] = [_plain(output, value) for output, value in zip(outputs, values, strict=True)]
        changed = [place for place, look in enumerate(shown) if look is None]
        if len(changed) == len(values):
            return await super().postprocess_data(block_fn, predictions, state)
        if changed:
            part = copy.copy(block_fn)
            part.outputs = [outputs[place] for place in changed]
            given = [values[place] for place in changed]
            done = await super().postprocess_data(part, given[0] if len(given) == 1 else given, state)
            for place, value in zip(changed, done, strict=True):
                shown[place] = value
        return shown


def _in_order(outputs: Sequence[Any], predictions: Any) -> list[Any]:
    """What is to become of each output, from a list or from a dict of those that change."""
    if not isinstance(predictions, dict):
        return list(predictions)
    return [predictions.get(output, UNCHANGED) for output in outputs]


def _plain(output: Any, value: Any) -> dict[str, Any] | None:
    """What the page is told of an update that needs no component to be built; None of any other value."""
    if isinstance(value, Block):
        value = {**value.constructor_args, "__type__": "update"}
    if not isinstance(value, dict) or value.get("__type__") != "update":
        return None
    # What checks values, such as a list of choices, is built: how it is now matters when the page sends one.
    looks = PLAIN if isinstance(output, BlockContext | gr.Button) else {"__type__"}
    return dict(value) if value.keys() <= looks and None not in value.values() else None
