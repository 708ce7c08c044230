"""Which dollar signs are math."""

import time

import pytest

from granite_demo.ui.markdown import prepare


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A $x^2$ B", r"A \(x^2\) B"),
        ("$x$ and $y$", r"\(x\) and \(y\)"),
        ("the $n$th, ($a$), $b$.", r"the \(n\)th, (\(a\)), \(b\)."),
        ("设$x$为", r"设\(x\)为"),
        ("over $a +\nb$ lines", "over \\(a +\nb\\) lines"),
        ("costs $5 and $x$ is", r"costs $5 and \(x\) is"),
        ("| $a$ | $b$ |\n|---|---|\n| $|x|$ | 1 |", "| \\(a\\) | \\(b\\) |\n|---|---|\n| \\(|x|\\) | 1 |"),
        ("- item $x$\n- $y$", "- item \\(x\\)\n- \\(y\\)"),
        ("`code` $x$ `more`", r"`code` \(x\) `more`"),
        ("a ` lone mark, $x$\n\nend", "a ` lone mark, \\(x\\)\n\nend"),
        ("```\n$a$\n```\n$b$", "```\n$a$\n```\n\\(b\\)"),
        ("~~~\n```\n$a$\n~~~\n$b$", "~~~\n```\n$a$\n~~~\n\\(b\\)"),
        ("````\n```\n$a$\n````\n$b$", "````\n```\n$a$\n````\n\\(b\\)"),
        ("```not``` a fence\n$b$", "```not``` a fence\n\\(b\\)"),
        (r"$I \propto 1/\lambda^4$, $5", r"\(I \propto 1/\lambda^4\), $5"),
        (r"$a \$ b$ c", r"\(a \$ b\) c"),
        ("$$a$$ and $b$", r"$$a$$ and \(b\)"),
        (r"\(a\) and $b$ and \[c\]", r"\(a\) and \(b\) and \[c\]"),
        ("\\(unclosed and $b$\n\nend", "\\(unclosed and \\(b\\)\n\nend"),
    ],
)
def test_what_is_math_is_rewritten(text: str, expected: str) -> None:
    assert prepare(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no dollar",
        "$5",
        "$5 and $6",
        "from $5-$10 to $20/$30",
        "US$ and A$",
        "Set $PATH, then use ($HOME)",
        "$HOME/$USER",
        "between US$4 and AU$",
        "a $ b $ c",
        "$x $",
        "$ x$",
        "$x$5",
        "unclosed $x",
        "$x\n\ny$",
        "$x\n>\ny$",
        r"\$5 is 4$",
        r"$x\$ y",
        "$$",
        "$$\nx_1\n$$",
        "$$x$",
        "`$x$`",
        "``a ` $x$``",
        "$a `$` b",
        "`still open $x$",
        r"\[ still open $x$",
        "```\n$x$",
        "  ```python\n  $x$\n  ```",
        "> ```\n> $x$\n> ```",
        r"$f\(x\)$",
        r"\[ \text{$x$} \]",
        r"\( $x$ \)",
    ],
)
def test_everything_else_is_left_alone(text: str) -> None:
    assert prepare(text) == text


def test_it_is_done_once() -> None:
    text = "A $x$ and `$y$` for $5."
    assert prepare(prepare(text)) == prepare(text)


def test_an_answer_that_grows_does_not_flicker() -> None:
    text = "It costs $5 and $x^2$ is `$a$` math.\n\n```\n$b$\n```\nand $c$ ends"
    for size in range(len(text)):
        now, then = prepare(text[:size]), prepare(text[: size + 1])
        # One more letter only adds to the end, or closes the math that was open.
        kept = now[: now.rfind("$")] if "\\)" in then[len(now) - 1 :] else now
        assert then.startswith(kept)


@pytest.mark.parametrize("piece", ["$", "$a", "$a ", r"\(", "`$", "$$ ", "\n$", "```\n", "$ `` ` ``` $"])
def test_the_time_is_linear(piece: str) -> None:
    text = piece * 100_000
    start = time.perf_counter()
    prepare(text)
    assert time.perf_counter() - start < 3
