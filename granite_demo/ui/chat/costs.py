"""Two answers at once: streamed side by side, with their costs and how they differ. Knows no page."""

from granite_demo.ui.html import note_html
from granite_demo.ui.streaming import Snapshot

SAME = 0.05
"""Numbers that differ by less than this share are told as they are."""


def costs_html(shot: Snapshot) -> str:
    """What an answer cost so far, as a table, with its note when it ended in an error."""
    answer = shot.answer
    seconds = _seconds(shot)
    rate = answer.finish.timings.decode_rate(answer.tokens) if answer.finish else None
    rows = (
        ("Tokens", f"{answer.tokens:,}"),
        ("of them thinking", f"{answer.thinking_tokens:,}" if answer.thinking_tokens else ""),
        ("Time to first token", "" if answer.ttft is None else f"{answer.ttft:.2f} s"),
        ("Tokens/s", "" if rate is None else f"{rate:.1f}"),
        ("Total time", f"{seconds:.2f} s"),
    )
    cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows if value)
    return f'{note_html(shot.note, shot.kind)}<table class="costs"><tbody>{cells}</tbody></table>'


def difference_words(a: Snapshot, b: Snapshot) -> str:
    """The two answers compared in words; empty unless both have ended by themselves."""
    if any(shot.answer.finish is None or shot.answer.finish.reason == "stopped" for shot in (a, b)):
        return ""
    sentences = [
        _ratio("used", "the tokens of", a.answer.tokens, b.answer.tokens, ","),
        _ratio("took", "the time of", _seconds(a), _seconds(b), ".2f", " s"),
    ]
    thoughts = a.answer.thinking_tokens, b.answer.thinking_tokens
    if any(thoughts):
        sentences.append(f"Thinking took {thoughts[0]:,} tokens in A and {thoughts[1]:,} in B.")
    same = a.answer.text.strip() == b.answer.text.strip()
    sentences.append("The answers are the same, letter by letter." if same else "The answers differ.")
    return " ".join(sentences)


def _ratio(verb: str, what: str, a: float, b: float, style: str, unit: str = "") -> str:
    if abs(a - b) <= SAME * max(a, b) or not min(a, b):
        return (
            f"A {verb} {a:{style}}{unit} and B {b:{style}}{unit}{' tokens' if what.startswith('the tokens') else ''}."
        )
    (more, large), (less, small) = sorted((("A", a), ("B", b)), key=lambda side: -side[1])
    return (
        f"{more} {verb} {large / small:.1f} times {what} {less} ({large:{style}}{unit} against {small:{style}}{unit})."
    )


def _seconds(shot: Snapshot) -> float:
    return shot.answer.finish.timings.total if shot.answer.finish else shot.elapsed
