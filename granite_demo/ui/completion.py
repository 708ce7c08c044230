"""The Completion tab: raw text and the probabilities of its tokens, in inner tabs."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from granite_demo.access import Access
from granite_demo.backends import Backend
from granite_demo.ui import filling, precisions, scoring, write_events, writing
from granite_demo.ui.filling import FillingTab
from granite_demo.ui.precisions import PrecisionsTab
from granite_demo.ui.scoring import ScoringTab
from granite_demo.ui.settings import Preferences
from granite_demo.ui.writing import WriteTab


@dataclass(frozen=True, slots=True)
class CompletionTab:
    """The inner tabs."""

    write: WriteTab
    fill: FillingTab
    score: ScoringTab
    precisions: PrecisionsTab


def layout(backend: Backend, access: Access) -> CompletionTab:
    """Place the components. Call inside the tab."""
    with gr.Tabs(elem_id="completion-tabs"):
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
    write_events.wire(tab.write, preferences, backend, demo, ready)
    filling.wire(tab.fill, preferences, backend, demo, ready)
    scoring.wire(tab.score, backend, demo, ready, tab.write.prompt)
    precisions.wire(tab.precisions, backend, access, demo, ready)
