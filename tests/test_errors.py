"""The tree drawn in the module's docstring is the tree in the code."""

import re

from granite_demo import errors

LINE = re.compile(r"^ {4}(?P<indent>[│├└─ ]*)(?P<name>\w+) +(?P<status>\d{3})(?: |$)", re.MULTILINE)


def drawn() -> dict[str, tuple[str, int]]:
    """Each drawn class with its parent and status."""
    tree: dict[str, tuple[str, int]] = {}
    above: list[str] = []
    for line in LINE.finditer(errors.__doc__ or ""):
        depth = len(line["indent"]) // 4
        del above[depth:]
        tree[line["name"]] = (above[-1] if above else "Exception", int(line["status"]))
        above.append(line["name"])
    return tree


def test_the_drawn_tree_is_the_real_one() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    real = {cls.__name__: (cls.__bases__[0].__name__, getattr(cls, "status", 0)) for cls in classes}
    assert drawn() == real


def test_every_error_shows_the_message_it_was_raised_with() -> None:
    assert errors.DownloadError("No network. Connect, then try again.").user_text == (
        "No network. Connect, then try again."
    )


def test_context_overflow_says_how_much_is_too_much() -> None:
    error = errors.ContextOverflowError(12_345, 8_192)
    assert (error.prompt_tokens, error.context_length) == (12_345, 8_192)
    assert "12,345 tokens" in error.user_text
    assert "8,192" in error.user_text
