"""A small page with the tabs of the token view and a fake backend."""

import math
from typing import Any

import gradio as gr
from fastapi import FastAPI

from granite_demo.access import Access
from granite_demo.server.credentials import Credentials
from granite_demo.server.guard import Guard
from granite_demo.server.policy import Policy
from granite_demo.types.comparison import ComparedSide, ComparedToken, Comparing, Comparison
from granite_demo.types.events import ScoreSummary
from granite_demo.types.logprobs import ScoredToken, TokenAlternative
from granite_demo.ui import settings
from granite_demo.ui.completion import fill as filling
from granite_demo.ui.completion import precisions
from granite_demo.ui.completion import score as scoring
from granite_demo.ui.gradio_patches.files import uploads_of
from granite_demo.ui.theme import load_theme
from tests.browser.frame import add_look
from tests.fakes import FakeBackend

WORDS = ("The", " capital", " of", " France", " is", "\n", " <b>Rome", "</b>", "    ", "{{x}}", "<|end_of_text|>")
CSP = "${1+1}"
"""Text that the templates of the page would evaluate if they parsed it as a part of themselves."""


def scored(count: int = len(WORDS)) -> list[ScoredToken]:
    """Return ``count`` tokens from ``WORDS``, each with three alternatives of which the samplers exclude one."""
    found = []
    for index in range(count):
        others = (
            TokenAlternative(100, " Paris", math.log(0.75), math.log(0.9)),
            TokenAlternative(index, WORDS[index % len(WORDS)], math.log(0.2), math.log(0.1)),
            TokenAlternative(101, CSP, math.log(0.05), -math.inf),
        )
        logprob = -0.75 * (index % len(WORDS)) if index else None
        found.append(ScoredToken(index, WORDS[index % len(WORDS)], logprob, logprob, 0.4 * (index % 11), others))
    return found


def summary(found: list[ScoredToken]) -> ScoreSummary:
    return ScoreSummary(len(found), sum(token.logprob or 0.0 for token in found), 0.5)


def comparison(text: str) -> Comparison:
    """Return a comparison of ``text`` with an increasing divergence."""
    words = [word if not index else f" {word}" for index, word in enumerate(text.split(" "))]
    tokens = tuple(
        ComparedToken(index, word, 10.0 ** (index % 9 - 7), index % 9 < 7, -0.5, -0.6, word, " <i>else")
        for index, word in enumerate(words[1:], 1)
    )
    facts = (("Device", "cpu", "a test"),)
    sides = [
        ComparedSide("bfloat16", facts, 5_000_000_000, 2000.0, 41.5, 12.25),
        ComparedSide("nf4", facts, 1_600_000_000, 1500.0, 55.0, 12.75),
    ]
    return Comparison(tokens, *sides)


def script(text: str) -> list[Comparing | Comparison]:
    return [Comparing("bfloat16: reading", 0.25), Comparing("nf4: reading", 0.75), comparison(text)]


def build(backend: FakeBackend, access: Access) -> FastAPI:
    """Return the page, with the HTTP headers of the real one."""
    demo = gr.Blocks(title="Tabs", analytics_enabled=False)
    with demo, gr.Column(elem_id="app"):
        answering = gr.Textbox(visible=False)
        prompt = gr.Textbox(label="Write", elem_id="prompt")
        with gr.Tabs():
            with gr.Tab("Fill in the middle"):
                fill = filling.layout()
            with gr.Tab("Score"):
                score = scoring.layout()
            with gr.Tab("Precision A/B"):
                pair = precisions.layout(backend, access)
            with gr.Tab("Settings"):
                preferences = settings.layout()
        timer = gr.Timer(0.3)
        timer.tick(lambda: f"{backend.state.model} {backend.state.unable}", None, answering)
        ready = [answering.change]
        filling.wire(fill, preferences, backend, demo, ready)
        scoring.wire(score, backend, demo, ready, prompt)
        precisions.wire(pair, backend, access, demo, ready)
    demo.queue(default_concurrency_limit=16)
    app = FastAPI()
    folder, uploaded = uploads_of(demo)
    credentials = Credentials("", ())
    add_look(app)
    app.add_middleware(Guard, policy=Policy(), credentials=credentials, folder=folder, uploaded=uploaded)
    mounted: Any = gr.mount_gradio_app(app, demo, path="/", theme=load_theme(), ssr_mode=False, run_history=False)
    route: Any = app.routes[-1]
    app.state.page = route.app
    return mounted  # type: ignore[no-any-return]
