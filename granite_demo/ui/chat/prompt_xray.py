"""Prompt X-ray: the exact prompt of the next request with its token ids, by origin, and what changed since the last."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, get_args

import gradio as gr

from granite_demo.backend import Backend
from granite_demo.chat import conversation as conversations
from granite_demo.chat.request import build_request
from granite_demo.errors import GraniteDemoError
from granite_demo.types.prompt_view import Origin, PromptPart, PromptView
from granite_demo.ui.conversation_list import SHOWN_JS
from granite_demo.ui.executor import off_loop
from granite_demo.ui.gradio_patches.events import DIRECT
from granite_demo.ui.html import note_html, panel_head
from granite_demo.ui.settings import to_sampling
from granite_demo.ui.streaming import own

SHOWN_FIRST, SHOWN_LAST = 4000, 1000
"""Tokens shown of a long prompt: as many of its beginning and of its end."""
MAX_DIFFED = 1000
"""Tokens of the part that differs; a longer one is shown as replaced, since comparing takes the square of the time."""
MAX_KEPT = 20_000
"""Tokens of a prompt that the browser keeps for the next comparison."""
AROUND_CHANGE = 8
"""Unchanged tokens shown on both sides of a change."""
MAX_RUN = 400
"""Tokens shown of one change."""

ORIGIN_NAMES: dict[Origin, str] = {
    "template": "template text",
    "control": "control tokens",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "document": "documents",
    "tool": "tools",
}

Piece = tuple[str, int, str]
"""(origin, token id, its text)"""


def pieces(view: PromptView) -> list[Piece]:
    """The prompt's tokens one by one."""
    return [(part.origin, number, text) for part in view.parts for number, text in part.tokens]


def raw_text(view: PromptView) -> str:
    """The prompt as text."""
    return "".join(part.text for part in view.parts)


def xray_html(view: PromptView) -> str:
    """The prompt as coloured tokens, each with its id; a box shows the ids in place of the text."""
    every = pieces(view)
    hidden = len(every) - SHOWN_FIRST - SHOWN_LAST
    if hidden <= 0:
        body = _spans(every)
    else:
        gap = f'<span class="gap">… {_tokens(hidden)} not shown …</span>'
        body = f"{_spans(every[:SHOWN_FIRST])}{gap}{_spans(every[-SHOWN_LAST:])}"
    left_out = ""
    if view.dropped:
        left_out = note_html(f"Left out to fit the context: {view.dropped:,} of the oldest messages.")
    return (
        f'<div class="xray">{_legend(every)}{left_out}'
        '<label class="ids"><input type="checkbox"> Token ids</label>'
        f'<div class="tokens" tabindex="0" role="region" aria-label="The prompt, token by token">{body}</div></div>'
    )


def _legend(every: Sequence[Piece]) -> str:
    counts = dict.fromkeys(get_args(Origin), 0)
    for origin, _, _ in every:
        counts[origin] = counts.get(origin, 0) + 1
    parts = "".join(
        f'<span class="o-{origin}">{ORIGIN_NAMES[origin]}</span> {count:,}&ensp;'
        for origin, count in counts.items()
        if count
    )
    return f'<div class="legend">{_tokens(len(every))}:&ensp;{parts}</div>'


def _spans(every: Iterable[Piece]) -> str:
    return "".join(f'<b class="o-{origin}" title="{number}">{_visible(text)}</b>' for origin, number, text in every)


def _visible(text: str) -> str:
    # A token without text, such as half a letter of another script, still needs something to point at.
    return html.escape(text).replace("\n", "↵\n") or "·"


def _tokens(count: int) -> str:
    return f"{count:,} token{'s' * (count != 1)}"


def difference_html(before: PromptView, after: PromptView) -> str:
    """What changed from one prompt to the next, token by token."""
    old, new = pieces(before), pieces(after)
    changes = _changes([number for _, number, _ in old], [number for _, number, _ in new])
    removed = sum(b - a for kind, a, b, _, _ in changes if kind != "equal")
    added = sum(d - c for kind, _, _, c, d in changes if kind != "equal")
    if not removed and not added:
        return note_html("Since the last look nothing changed: token by token, the prompt is the same.")
    parts: list[str] = []
    for place, (kind, a, b, c, d) in enumerate(changes):
        if kind == "equal":
            parts.append(_unchanged(new[c:d], first=place == 0, last=place == len(changes) - 1))
        else:
            parts += [_run("del", old[a:b]), _run("ins", new[c:d])]
    words = f"Since the last look: {_tokens(removed)} removed, {added:,} added."
    return (
        f'<div class="xray changes">{note_html(words)}<div class="tokens" tabindex="0" role="region" '
        f'aria-label="What changed in the prompt">{"".join(parts)}</div></div>'
    )


ChangedTokens = tuple[str, int, int, int, int]
"""As ``difflib``'s opcodes."""


def _changes(old: list[int], new: list[int]) -> list[ChangedTokens]:
    """The opcodes from ``old`` to ``new``, in bounded time."""
    shorter = min(len(old), len(new))
    head = next((n for n in range(shorter) if old[n] != new[n]), shorter)
    tail = next((n for n in range(shorter - head) if old[-1 - n] != new[-1 - n]), shorter - head)
    old_end, new_end = len(old) - tail, len(new) - tail
    changes: list[ChangedTokens] = [("equal", 0, head, 0, head)] if head else []
    if max(old_end, new_end) - head <= MAX_DIFFED:
        # Junk is what comes often; without that rule a prompt of equal tokens takes minutes.
        for kind, a, b, c, d in SequenceMatcher(None, old[head:old_end], new[head:new_end]).get_opcodes():
            changes.append((kind, a + head, b + head, c + head, d + head))
    else:
        changes.append(("replace", head, old_end, head, new_end))
    if tail:
        changes.append(("equal", old_end, len(old), new_end, len(new)))
    return changes


def _unchanged(run: Sequence[Piece], first: bool, last: bool) -> str:
    before = 0 if first else AROUND_CHANGE
    after = 0 if last else AROUND_CHANGE
    hidden = len(run) - before - after
    if hidden <= 1:
        return _spans(run)
    gap = f'<span class="gap">… {_tokens(hidden)} unchanged …</span>'
    return f"{_spans(run[:before])}{gap}{_spans(run[len(run) - after :])}"


def _run(tag: str, run: Sequence[Piece]) -> str:
    if not run:
        return ""
    more = f'<span class="gap">… {_tokens(len(run) - MAX_RUN)} more …</span>' if len(run) > MAX_RUN else ""
    return f"<{tag}>{_spans(run[:MAX_RUN])}{more}</{tag}>"


def pack(view: PromptView) -> list[Any]:
    """``view`` for the browser to keep; empty if it is too long for that."""
    if view.tokens > MAX_KEPT:
        return []
    return [[part.origin, [list(token) for token in part.tokens]] for part in view.parts]


def unpack(value: Any) -> PromptView | None:
    """The view that the browser kept, as far as a difference needs it; None if there is none."""
    try:
        parts = tuple(_unpack_part(origin, tokens) for origin, tokens in value or ())
    except (TypeError, ValueError):
        return None
    return PromptView(parts, 0, 0, 0) if parts else None


def _unpack_part(origin: Any, tokens: Any) -> PromptPart:
    if origin not in ORIGIN_NAMES:
        raise ValueError(origin)
    return PromptPart(origin, "", tuple((int(number), str(text)) for number, text in tokens))


@dataclass(frozen=True, slots=True)
class Xray:
    """The panel's components."""

    show: gr.Button
    view: gr.HTML
    difference: gr.HTML
    text: gr.Textbox
    last: gr.JSON
    """The prompt that was shown last, kept by the browser."""


def layout() -> Xray:
    """Place the components."""
    with gr.Column(elem_id="xray", elem_classes="drawer"):
        about = (
            "The exact prompt of what you are writing, or of your last message, with all that the chat template adds."
        )
        gr.HTML(panel_head("Prompt X-ray", about), padding=False)
        show = gr.Button("Show the prompt", elem_id="xray-show")
        view = gr.HTML(elem_id="xray-view")
        difference = gr.HTML(elem_id="xray-difference")
        text = gr.Textbox(
            label="The prompt as text",
            lines=3,
            max_lines=8,
            interactive=False,
            visible=False,
            buttons=["copy"],
            elem_id="xray-text",
        )
        last = gr.JSON([], visible=False)
    return Xray(show, view, difference, text, last)


def wire(panel: Xray, backend: Backend, holder: Any, message: gr.Textbox, components: Sequence[Any]) -> None:
    """Connect the events. ``components`` are those of ``Preferences``."""

    async def show(visit: gr.Request, value: Any, text: str | None, last: Any, *values: Any) -> tuple[Any, ...]:
        try:
            conversation = await off_loop(conversations.load, value)
            if not (text or "").strip():
                conversation = conversations.unanswered(conversation)
            sampling = to_sampling(*values)
            request = await off_loop(build_request, conversation, sampling, text or "")
            view = await own(backend, visit).inspect(request, parts=True)
        except GraniteDemoError as error:
            return note_html(error.user_text, "error"), "", gr.Textbox(visible=False), gr.skip()
        if view is None:
            note = "The prompt cannot be known: no model is ready here, or another server renders it."
            return note_html(note), "", gr.Textbox(visible=False), gr.skip()
        shown, changed, kept = await off_loop(_pages, view, last)
        return shown, changed, gr.Textbox(value=raw_text(view), visible=True), kept

    outputs = [panel.view, panel.difference, panel.text, panel.last]
    panel.show.click(show, [holder, message, panel.last, *components], outputs, js=SHOWN_JS, **DIRECT)


def _pages(view: PromptView, last: Any) -> tuple[str, str, list[Any]]:
    before = unpack(last)
    return xray_html(view), difference_html(before, view) if before else "", pack(view)
