"""The page's Blocks, made cheap for streams: what an update leaves alone costs nothing."""

import copy
from collections.abc import Sequence
from typing import Any

import gradio as gr

UNCHANGED = gr.skip()


class Page(gr.Blocks):
    """Blocks that do not build a component anew, as Gradio 6.31 does, for each output that is ``gr.skip()``.

    That takes milliseconds each time, and each word of an answer is such an update.
    """

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """See ``gr.Blocks``."""
        outputs = block_fn.outputs
        if len(outputs) == 1 or not predictions or predictions == UNCHANGED:
            return await super().postprocess_data(block_fn, predictions, state)
        if isinstance(predictions, dict) and not set(predictions) <= set(outputs):
            return await super().postprocess_data(block_fn, predictions, state)  # which says what is wrong
        values = _in_order(outputs, predictions)
        changed = [place for place, value in enumerate(values) if not _is_unchanged(value)]
        if len(changed) == len(values) or len(values) != len(outputs):
            return await super().postprocess_data(block_fn, predictions, state)
        shown: list[Any] = [dict(UNCHANGED) for _ in outputs]
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


def _is_unchanged(value: Any) -> bool:
    return isinstance(value, dict) and value == UNCHANGED
