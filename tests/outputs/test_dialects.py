"""The table of dialects, and how a chat template selects a row."""

from pathlib import Path

import pytest

from granite_demo.outputs.dialects import DIALECTS, PLAIN, Dialect, find_dialect

TEMPLATES = Path(__file__).parents[3] / "shared" / "templates"

CALLS = "respond with <|tool_call|> followed by a JSON list of tools used."
SNIPPETS = {
    "3.2": (
        f"Write your thoughts after 'Here is my thought process:' and ... {CALLS}",
        f"<|start_of_role|>system<|end_of_role|>{CALLS}",
    ),
    "3.3": (f"{CALLS} Write your thoughts between <think></think> and ... <response></response>",),
    "4.0": ("<|start_of_role|>...within <tool_call></tool_call> XML tags", "<|im_start|>...<tool_call>\\n{name}"),
    "4.2": ("<|im_start|>...<tool_call>\\n<function=' + name + '>...<think></think>",),
    "plain": ("{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}", ""),
}
EVERY_SNIPPET = [(name, text) for name, texts in SNIPPETS.items() for text in texts]


@pytest.mark.parametrize(("name", "template"), EVERY_SNIPPET)
def test_a_template_selects_its_dialect(name: str, template: str) -> None:
    assert find_dialect(template) is DIALECTS[name]


@pytest.mark.parametrize(("file", "name"), [("granite-3.3-instruct", "3.3"), ("granite-4.0", "4.0")])
def test_granites_own_templates(file: str, name: str) -> None:
    path = TEMPLATES / f"{file}.jinja"
    if not path.is_file():
        pytest.skip("the templates are not next to this repository")
    assert find_dialect(path.read_text()).name == name


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_no_marker_is_a_part_of_another(dialect: Dialect) -> None:
    # The parser takes the first complete marker, so an inner marker would hide the outer one.
    # The markers of a document's mark are searched only inside a citation.
    markers = [marker for marker in dialect.markers if marker not in (dialect.key_open, dialect.key_close)]
    assert len(set(markers)) == len(markers)
    assert not [(one, other) for one in markers for other in markers if one != other and one in other]


def test_rows_have_unique_names_and_the_last_matches_any_template() -> None:
    assert list(DIALECTS) == ["4.2", "3.3", "3.2", "4.0", "plain"]
    assert list(DIALECTS.values())[-1] is PLAIN
    assert PLAIN.markers == ()
