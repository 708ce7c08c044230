"""The turns of a conversation as the chatbot's messages. Pure functions, tested without a page.

The chatbot keeps class, title and href of markup, but no data attributes: a button of ours carries its action and its
turn in its classes (``act retry t-ID``), for which ``ui/assets/chat.js`` listens.
"""

import html
import re
from itertools import accumulate, takewhile
from typing import Any, NamedTuple

from granite_demo.chat import actions
from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation, Turn
from granite_demo.ui.chat.sources import Footnotes
from granite_demo.ui.chat.tools import call_card, pending, pending_card, result_card, waits_for_answer
from granite_demo.ui.html import note_html
from granite_demo.ui.markdown import shown_text
from granite_demo.ui.streaming import Snapshot

ChatHistory = list[dict[str, Any]]
"""``gr.Chatbot``'s value."""

WINDOW = 24
"""Turns that are shown at first: the cost of an update must not grow with the conversation."""

MAX_SHOWN, MAX_SCREEN = 200_000, 1_000_000
"""Characters of one text and of all texts together that are shown; earlier turns are then left out."""

MAX_SHOWN_TURNS = 500
"""Turns that are shown at most. Gradio takes 40 ms of the event loop for a thousand."""

_USER_ACTS = (("edit", "Edit"), ("clip", "Copy"))
_ANSWER_ACTS = (
    ("go", "Continue"),
    ("clip", "Copy"),
    ("edit", "Edit"),
    ("retry", "Retry"),
    ("branch", "Branch"),
    ("ground", "Sources"),
    ("bundle", "Save recipe"),
)
_TITLES = {
    "go": "Go on where this answer was cut",
    "clip": "Copy this text",
    "edit": "Edit; the old version is kept",
    "retry": "Answer again; the old answer is kept",
    "branch": "Continue from here in a new conversation",
    "ground": "See what in the documents supports this answer",
    "bundle": "Download all that is needed to make this answer again",
}
_STATS = re.compile(r"[\d,]+ tokens?|[\d.,]+ s to first token|[\d.,]+ tokens/s|finished \(stop\)|calls a tool|seed \d+")
"""The parts of a note that are figures of an answer that ended well."""
_FORMULA = re.compile(r"\$(?=\$)|\\(?=[(\[])")
"""What begins or ends a formula, see ``markdown.DELIMITERS``, without its last character."""
_LISTS = {"citations": "The model's list of its citations", "hallucinations": "What the model may have made up"}


def _size(turn: Turn) -> int:
    texts = [turn.content[:MAX_SHOWN], turn.thinking[:MAX_SHOWN], *(call.arguments for call in turn.calls)]
    return sum(map(len, [*texts, *(listed.text for listed in turn.appendices)]))


class View(NamedTuple):
    """A conversation, and what is found once for all messages of it that are shown."""

    conversation: Conversation
    siblings: conversations.Siblings
    footnotes: Footnotes


def chat_messages(
    conversation: Conversation, *, everything: bool = False, busy: bool = False
) -> tuple[ChatHistory, int]:
    """The messages of the branch that is shown, and how many of its earlier turns are left out.

    ``busy``: an answer to the last one is being written.
    """
    turns = conversations.path(conversation)
    sizes = accumulate(map(_size, reversed(turns)))
    fitting = sum(1 for _ in takewhile(lambda size: size <= MAX_SCREEN, sizes))
    hidden = len(turns) - min(len(turns), max(fitting, 1), MAX_SHOWN_TURNS if everything else WINDOW)
    view = View(conversation, conversations.siblings(conversation), Footnotes(conversation.documents))
    messages = [message for turn in turns[hidden:] for message in turn_messages(view, turn)]
    if waits_for_answer(conversation) and not busy:
        again = _button("retry again", turns[-1].id, "Ask again", "This question has no answer yet")
        messages[-1]["content"][-1]["text"] += f'<div class="acts">{again}</div>'
    return messages, hidden


def turn_messages(view: View, turn: Turn) -> ChatHistory:
    """The messages of one turn, which is complete."""
    if turn.role == "user":
        return [_message("user", _written(turn.content), _acts(view, turn, _USER_ACTS))]
    if turn.role == "tool":
        return [_message("assistant", "", result_card(turn) + _acts(view, turn, _USER_ACTS))]
    text, foot = view.footnotes.of(turn)
    given = len(turn.calls) - (len(pending(view.conversation)) if turn.calls else 0)
    waits = turn.calls and turn.id == _last_answer(view.conversation)
    cards = [
        pending_card(view.conversation, turn, place) if waits and place >= given else call_card(call)
        for place, call in enumerate(turn.calls)
    ]
    return _answer(turn, text, foot, _acts(view, turn, _ANSWER_ACTS, _split(turn)[1]), "".join(cards))


def _last_answer(conversation: Conversation) -> str | None:
    answers = (turn.id for turn in reversed(conversations.path(conversation)) if turn.role == "assistant")
    return next(answers, None)


def growing_messages(turn: Turn) -> ChatHistory:
    """The messages of an answer that is being written: it has no buttons, and no footnotes, which take time to find."""
    return _answer(turn, turn.content, "", "", "".join(map(call_card, turn.calls)), busy=True)


def _answer(turn: Turn, text: str, foot: str, acts: str, cards: str, *, busy: bool = False) -> ChatHistory:
    lists = "".join(
        f"<details><summary>{_LISTS[listed.kind]}</summary><pre>{html.escape(listed.text.strip())}</pre></details>"
        for listed in turn.appendices
    )
    note, _ = _split(turn, busy)
    below = cards + foot + lists + (note_html(note, turn.kind) if note else "") + acts
    return [*_thinking(turn, busy), _message("assistant", _shown(text), below)]


def _shown(text: str) -> str:
    return shown_text(text[:MAX_SHOWN]) + _rest(text)


def _written(text: str) -> str:
    """What a visitor wrote, as markup that shows each character of it: no text of theirs is Markdown."""
    # In one line: to Markdown, an empty line would end the markup.
    lines = html.escape((text[:MAX_SHOWN] + _rest(text)).replace("\r\n", "\n").replace("\r", "\n"))
    # Gradio looks for formulas in markup, too.
    lines = _FORMULA.sub(r"\g<0><wbr>", lines)
    return f'<div class="said">{lines.replace(chr(10), "&#10;")}</div>'


def _rest(text: str) -> str:
    more = len(text) - MAX_SHOWN
    return f"\n\n… {more:,} more characters. Copy takes all of them." if more > 0 else ""


def _split(turn: Turn, busy: bool = False) -> tuple[str, str]:
    """The note of ``turn``: what a reader has to know, and the figures for those who ask for them."""
    if busy or turn.kind == "error":
        return turn.note, ""
    parts = turn.note.split(" · ") if turn.note else []
    stats = [part for part in parts if _STATS.fullmatch(part)]
    return " · ".join(part for part in parts if part not in stats), " · ".join(stats)


def _thinking(turn: Turn, busy: bool) -> ChatHistory:
    if not turn.thinking:
        return []
    growing = busy and not turn.content and not turn.calls
    metadata = {
        "title": "Thinking",
        "log": f"{turn.thinking_tokens:,} token{'s' * (turn.thinking_tokens != 1)}",
        "duration": round(turn.thinking_seconds, 1),
        "status": "pending" if growing else "done",
    }
    return [{"role": "assistant", "content": _shown(turn.thinking), "metadata": metadata}]


def _message(role: str, text: str, below: str) -> dict[str, Any]:
    # A line break in markup would let the rest of it be read as Markdown.
    parts = [text, below.replace("\n", "&#10;")]
    return {"role": role, "content": [{"type": "text", "text": part} for part in parts if part or part is text]}


def _acts(view: View, turn: Turn, acts: tuple[tuple[str, str], ...], stats: str = "") -> str:
    conversation = view.conversation
    without = {"bundle"} if not turn.made else set[str]()
    without |= {"go"} if not actions.can_continue(conversation, turn) else set()
    without |= {"ground"} if not conversation.documents and not turn.sent else set()
    buttons = [_button(name, turn.id, label, _TITLES[name]) for name, label in acts if name not in without]
    if turn.role == "assistant":
        for vote, title in (("up", "Good answer"), ("down", "Bad answer")):
            chosen = " chosen" if turn.vote == vote else ""
            buttons.append(_button(f"{vote}{chosen}", turn.id, "", title + (" (chosen)" if chosen else "")))
    if stats:
        name = "Speed and tokens"
        summary = f'<summary title="{name}">{name}</summary>'
        buttons.append(f'<details class="stats">{summary}{note_html(stats)}</details>')
    return f'<div class="acts">{_arrows(view, turn)}{"".join(buttons)}</div>'


def _arrows(view: View, turn: Turn) -> str:
    ids = view.siblings[turn.parent, turn.role]
    if len(ids) == 1:
        return ""
    at = ids.index(turn.id)
    older = _button("show older", ids[at - 1], "", "Older version") if at else ""
    newer = _button("show newer", ids[at + 1], "", "Newer version") if at + 1 < len(ids) else ""
    return f'{older}<span class="versions">{at + 1}/{len(ids)}</span>{newer}'


def _button(act: str, turn_id: str, label: str, title: str) -> str:
    return f'<button type="button" class="act {act} t-{turn_id}" title="{title}">{label}</button>'


def answer_turn(turn_id: str, parent: str | None, shot: Snapshot) -> Turn:
    """An answer, as far as it is written, as a turn after ``parent``."""
    answer = shot.answer
    return Turn(
        id=turn_id,
        parent=parent,
        role="assistant",
        content=answer.text,
        thinking=answer.thinking,
        thinking_tokens=answer.thinking_tokens,
        thinking_seconds=answer.thinking_seconds(shot.elapsed),
        calls=tuple(answer.calls),
        citations=tuple(answer.citations[: conversations.MAX_CITATIONS]),
        appendices=tuple(answer.appendices),
        note=shot.note,
        kind=shot.kind,
    )
