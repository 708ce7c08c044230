"""Events and states to what the page shows: pure functions, tested without a page."""

import html

from granite_demo.types.engine_kinds import GGUF
from granite_demo.types.model_status import Fact, MemoryUse, ModelStatus, gigabytes


def note_html(text: str, kind: str = "note") -> str:
    """A line under an answer; ``kind`` is its class in the style sheet (note or error)."""
    return f'<div class="{kind}">{html.escape(text)}</div>'


def panel_head(title: str, hint: str = "") -> str:
    """The head of a panel beside the conversation, with the button that closes it; see ``assets/frame.js``."""
    close = '<button type="button" class="icon close" data-panel="" title="Close"></button>'
    below = f'<p class="hint">{html.escape(hint)}</p>' if hint else ""
    return f'<div class="panel-head"><h2>{html.escape(title)}</h2>{close}</div>{below}'


def status_html(status: ModelStatus) -> str:
    """The model's name and state, as the button that opens the picker, with why another model could not be loaded."""
    notice = f'<div class="error">{html.escape(status.notice)}</div>' if status.notice else ""
    kind, words, bar = _state(status)
    name = html.escape(status.title or ("The model" if status.model == "auto" else status.model))
    why = status.chosen_because
    title = f' title="{html.escape(why[:1].upper() + why[1:])}."' if why else ""
    return (
        f'<button type="button" class="status {kind}" data-sheet="picker"{title}><b>{name}</b> '
        f"<span>{html.escape(words)}</span>{bar}</button>{notice}"
    )


def _state(status: ModelStatus) -> tuple[str, str, str]:
    """The class, words and progress bar of a state."""
    if status.stage == "ready":
        setup = status.setup
        choices = [setup.device, setup.precision, setup.quantization, setup.attention] if setup else []
        if setup and setup.engine.kind.value == GGUF:
            choices = [setup.device, setup.quantization]
        shown = [*status.servers, *(str(choice) for choice in choices if choice.value != "none")]
        return "ready", " · ".join(shown), ""
    if status.stage == "idle":
        return "", "not loaded; the next message loads it", ""
    if status.stage == "failed":
        return "failed", status.detail, ""
    value = "" if status.fraction is None else f' value="{status.fraction:.3f}"'
    words = f"{status.stage} {status.detail}".strip()
    return "busy", words, f'<progress max="1"{value} aria-label="{html.escape(words)}"></progress>'


def facts_html(facts: tuple[Fact, ...]) -> str:
    """Names, values and reasons as a table."""
    if not facts:
        return "<p>Shown when the model is ready.</p>"
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td><td>{html.escape(reason)}</td></tr>"
        for name, value, reason in facts
    )
    return f"<table><tbody>{rows}</tbody></table>"


def memory_html(memory: MemoryUse | None) -> str:
    """A bar of the device's memory: weights, the cache of one full conversation, and what is free."""
    if memory is None:
        return ""
    whole = max(memory.weights + memory.free, 1)
    parts = (
        ("weights", memory.weights, "weights"),
        ("cache", min(memory.kv_cache, memory.free), "KV cache of one full context"),
        ("free", max(memory.free - memory.kv_cache, 0), "free"),
    )
    bar = "".join(f'<i class="{kind}" style="width:{100 * size / whole:.1f}%"></i>' for kind, size, _ in parts)
    words = " · ".join(
        f'<span><i class="{kind}"></i>{text} {html.escape(gigabytes(size))}</span>' for kind, size, text in parts
    )
    return f'<div class="memory"><div class="bar" role="img" aria-label="memory">{bar}</div>{words}</div>'
