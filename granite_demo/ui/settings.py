"""The sampling panel beside Chat and Completion: this visitor's own parameters, kept in the browser."""

import json
import re
from dataclasses import dataclass
from typing import Any, cast

import gradio as gr

from granite_demo.backend import Backend
from granite_demo.errors import InvalidRequestError
from granite_demo.types.model_status import ModelStatus
from granite_demo.types.sampling_params import MAX_STOP_LENGTH, MAX_STOP_STRINGS, SamplingParams
from granite_demo.ui.gradio_patches.events import DIRECT, follow
from granite_demo.ui.html import note_html, panel_head

STORAGE_KEY = "granite-demo-settings"
DEFAULTS = (0.0, 1.0, 0, 0.0, 1.0, 512, "", "")
"""The first values of ``Preferences.components``, in their order: greedy."""
LIMITS = ((0, 2), (0.01, 1), (0, 200), (0, 1), (0.8, 2), (1, 1_000_000))
"""The lowest and the highest value of those that are numbers, in the same order."""
WHOLE = (2, 5)
"""Which of them are whole numbers."""

IN_RANGE_JS = f"""(values) => {{
  const limits = {json.dumps(LIMITS)}, whole = {json.dumps(WHOLE)}, usual = {json.dumps(DEFAULTS)};
  return usual.map((first, at) => {{
    const value = values[at];
    if (!limits[at]) return value == null ? first : String(value);
    const number = value === null || value === "" || typeof value === "boolean" ? NaN : Number(value);
    const bounded = Math.min(Math.max(number, limits[at][0]), limits[at][1]);
    return Number.isNaN(number) ? first : whole.includes(at) ? Math.round(bounded) : bounded;
  }});
}}"""
"""The values of the components within their limits. What is no number becomes the default."""
KEEP_SETTINGS_JS = f"""(...values) => {{
  if (!window.graniteSettings) return;
  try {{ localStorage.setItem("{STORAGE_KEY}", JSON.stringify(window.graniteSettings(values))); }} catch {{}}
}}"""
KEPT_JS = f"""(...values) => {{
  window.graniteSettings = ({IN_RANGE_JS});
  try {{
    const kept = JSON.parse(localStorage.getItem("{STORAGE_KEY}"));
    if (Array.isArray(kept) && kept.length === values.length) return window.graniteSettings(kept);
  }} catch {{}}
  return values;
}}"""
"""Without a round trip, after which a slow page would overwrite what was typed meanwhile."""
CLAMP_JS = "(...values) => window.graniteSettings(values)"


@dataclass(frozen=True, slots=True)
class Preferences:
    """The panel's components. ``components`` are the arguments of ``to_sampling``, in order."""

    components: list[Any]
    reset: gr.Button
    own: gr.Button
    """Takes the values that the makers of the model use."""
    makers: gr.HTML

    @property
    def max_tokens(self) -> gr.Number:
        """The one that does not clamp what was typed by itself."""
        return cast("gr.Number", self.components[5])

    @property
    def shown(self) -> list[Any]:
        """The components that ``shown_values`` fills."""
        return [self.makers, self.own]


def to_sampling(
    temperature: Any,
    top_p: Any,
    top_k: Any,
    min_p: Any,
    repetition_penalty: Any,
    max_tokens: Any,
    seed: Any,
    stop: Any,
) -> SamplingParams:
    """The visitor's values as sampling parameters. Raises InvalidRequestError."""
    return SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_tokens=max_tokens,
        seed=to_seed(seed),
        stop=tuple(_unescape(line) for line in str(stop or "").splitlines() if line),
    )


def shown_values(status: ModelStatus) -> tuple[Any, ...]:
    """What the makers of the model of ``status`` use, if they name anything, and the button that takes it."""
    own = status.sampling
    if status.stage != "ready" or own == SamplingParams():
        return "", gr.Button(visible=False)
    values = f"temperature {own.temperature:g}, top-p {own.top_p:g}"
    values += f", up to {own.max_tokens:,} new tokens" if own.max_tokens else ""
    return note_html(f"Recommended for {status.title}: {values}."), gr.Button(visible=True)


def own_values(own: SamplingParams) -> list[Any]:
    """``own`` as values of ``Preferences.components``; seed and stop strings stay as they are."""
    values = [own.temperature, own.top_p, own.top_k, own.min_p, own.repetition_penalty, own.max_tokens or DEFAULTS[5]]
    return [*values, gr.skip(), gr.skip()]


def to_seed(value: Any) -> Any:
    """What was typed as a seed, None for nothing; the request checks numbers. Raises InvalidRequestError."""
    if not isinstance(value, str):
        return value
    words = value.strip()
    if not words:
        return None
    if not (words.isascii() and words.isdigit() and len(words) < 20):
        raise InvalidRequestError("The seed must be a whole number, or empty for a random one.")
    return int(words)


def _unescape(line: str) -> str:
    """``line`` with JSON's escapes, such as \\n, taken as the characters they stand for."""
    try:
        quoted = re.sub(r'\\.|"', lambda found: '\\"' if found[0] == '"' else found[0], line)
        text: str = json.loads(f'"{quoted}"', strict=False)
    except ValueError:
        raise InvalidRequestError(f"The stop string {line!r} has a broken escape; write a backslash as \\\\.") from None
    return text


def layout() -> Preferences:
    """Place the panel, beside the tabs."""
    temperature, top_p, top_k, min_p, penalty, max_tokens, seed, stop = DEFAULTS
    with gr.Column(elem_id="sampling", elem_classes="drawer"):
        gr.HTML(panel_head("Sampling", "For your answers only, kept in this browser."), padding=False)
        makers = gr.HTML(elem_id="makers", padding=False)
        own = gr.Button("Use these values", elem_id="own-sampling", visible=False)
        components: list[Any] = [
            gr.Slider(
                *LIMITS[0], temperature, step=0.05, label="Temperature", info="0 always takes the likeliest token."
            ),
            gr.Slider(
                *LIMITS[1], top_p, step=0.01, label="Top-p", info="Sample from the likeliest tokens of this total."
            ),
            gr.Slider(*LIMITS[2], top_k, step=1, label="Top-k", info="Sample from this many likeliest tokens. 0: all."),
            gr.Slider(
                *LIMITS[3], min_p, step=0.01, label="Min-p", info="Drop tokens below this share of the likeliest one."
            ),
            gr.Slider(*LIMITS[4], penalty, step=0.01, label="Repetition penalty", info="Above 1 repeats less. 1: off."),
            gr.Number(max_tokens, precision=0, step=1, label="Max new tokens", elem_id="max-tokens"),
            # No gr.Number: an empty one becomes 0 as soon as it is shown.
            gr.Textbox(seed, label="Seed", placeholder="random", info="The same seed repeats a sampled answer."),
            gr.Textbox(
                stop,
                label="Stop strings",
                lines=2,
                elem_id="stop-strings",
                info=f"One per line, up to {MAX_STOP_STRINGS}, {MAX_STOP_LENGTH} characters each. "
                "Generation stops before a match. \\n is a line break.",
            ),
        ]
        reset = gr.Button("Reset to defaults", elem_id="reset")
    return Preferences(components, reset, own, makers)


def wire(preferences: Preferences, backend: Backend, demo: gr.Blocks, ready: list[Any]) -> None:
    """Connect the events: values are kept in the browser and come back with the page.

    ``ready`` are those after which another model may answer.
    """
    values = preferences.components
    # A slider that clamps what was typed changes without an input. Before KEPT_JS has run, nothing is kept.
    gr.on([value.change for value in values], None, values, None, js=KEEP_SETTINGS_JS, **DIRECT)
    preferences.max_tokens.blur(None, values, values, js=CLAMP_JS, **DIRECT)
    preferences.reset.click(lambda: [*DEFAULTS], None, values, **DIRECT)
    preferences.own.click(lambda: own_values(backend.status().sampling), None, values, **DIRECT)
    follow(ready, lambda: shown_values(backend.status()), None, preferences.shown)
    demo.load(None, values, values, js=KEPT_JS, **DIRECT)
