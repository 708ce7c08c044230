"""The Completion tab: raw text and the probabilities of its tokens, in inner tabs."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from granite_demo.access import Access
from granite_demo.backend import Backend
from granite_demo.ui.completion import fill as filling
from granite_demo.ui.completion import precisions
from granite_demo.ui.completion import score as scoring
from granite_demo.ui.completion import write as writing
from granite_demo.ui.completion.fill import FillingTab
from granite_demo.ui.completion.precisions import PrecisionsTab
from granite_demo.ui.completion.score import ScoringTab
from granite_demo.ui.completion.write import WriteTab
from granite_demo.ui.settings import Preferences


@dataclass(frozen=True, slots=True)
class CompletionTab:
    """The inner tabs."""

    write: WriteTab
    fill: FillingTab
    score: ScoringTab
    precisions: PrecisionsTab


def layout(backend: Backend, access: Access) -> CompletionTab:
    """Place the components. Call inside the tab."""
    with gr.Column(elem_classes="page"), gr.Tabs(elem_id="completion-tabs"):
        with gr.Tab("Write", id="write"):
            write = writing.layout(backend)
        with gr.Tab("Fill in the middle", id="fill"):
            fill = filling.layout()
        with gr.Tab("Score", id="score"):
            score = scoring.layout()
        with gr.Tab("Precision A/B", id="precisions"):
            compared = precisions.layout(backend, access)
    return CompletionTab(write, fill, score, compared)


def wire(
    tab: CompletionTab,
    preferences: Preferences,
    backend: Backend,
    access: Access,
    demo: gr.Blocks,
    ready: list[Any],
) -> None:
    """Connect the events, after all tabs are laid out. ``ready`` are those after which another model may answer."""
    writing.wire(tab.write, preferences, backend, demo, ready)
    filling.wire(tab.fill, preferences, backend, demo, ready)
    scoring.wire(tab.score, backend, demo, ready, tab.write.prompt)
    precisions.wire(tab.precisions, backend, access, demo, ready)
