"""Events and states to what the page shows: pure functions, tested without a page."""

import html

from granite_demo.types.model_status import Fact, MemoryUse, ModelStatus, gigabytes


def note_html(text: str, kind: str = "note") -> str:
    """A line under an answer; ``kind`` is its class in the style sheet (note or error)."""
    return f'<div class="{kind}">{html.escape(text)}</div>'


def status_html(status: ModelStatus) -> str:
    """The model's state for the head of the page, with why another model could not be loaded."""
    notice = f'<div class="error">{html.escape(status.notice)}</div>' if status.notice else ""
    return _state_html(status) + notice


def _state_html(status: ModelStatus) -> str:
    name = html.escape(status.title or ("The model" if status.model == "auto" else status.model))
    if status.stage == "ready":
        setup, why = status.setup, status.chosen_because
        choices = (setup.device, setup.precision, setup.quantization, setup.attention) if setup else ()
        shown = [*status.servers, *(str(choice) for choice in choices if choice.value != "none")]
        values = " · ".join(map(html.escape, shown))
        chosen = f'<div class="note">{html.escape(why[:1].upper() + why[1:])}.</div>' if why else ""
        return f'<div class="status ready"><b>{name}</b> <span>{values}</span>{chosen}</div>'
    if status.stage == "idle":
        return f'<div class="status"><b>{name}</b> <span>not loaded; the next message loads it</span></div>'
    if status.stage == "failed":
        return f'<div class="status failed"><b>{name}</b> <span>{html.escape(status.detail)}</span></div>'
    value = "" if status.fraction is None else f' value="{status.fraction:.3f}"'
    words = html.escape(f"{status.stage} {status.detail}".strip())
    return (
        f'<div class="status busy"><b>{name}</b> <span>{words}</span>'
        f'<progress max="1"{value} aria-label="{words}"></progress></div>'
    )


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
