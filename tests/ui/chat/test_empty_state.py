"""The empty chat, without a page."""

from dataclasses import replace

from granite_demo.chat.tools import EXAMPLE_TOOLS, parse_tools
from granite_demo.types.messages import Switches
from granite_demo.ui.chat.empty_state import empty_html, examples
from tests.fakes import READY


def test_each_example_shows_one_ability() -> None:
    made = examples(READY)
    assert [example.title for example in made] == [
        "Ask a document",
        "Call a tool",
        "Write code",
        "Write JSON",
        "Fill in the middle",
        "Compare",
    ]
    assert not any(example.off for example in made)
    assert parse_tools(made[1].fills["tools"]) == EXAMPLE_TOOLS


def test_what_the_model_lacks_is_off_with_the_reason() -> None:
    less = replace(READY, switches=Switches(), unable=(("fill in the middle", "It has no tokens for that."),))
    assert [bool(example.off) for example in examples(less)] == [True, True, False, False, True, False]
    assert "It has no tokens for that." in empty_html(less)


def test_the_model_and_what_it_can_do_are_one_line() -> None:
    assert "What can Fake model do for you?" in empty_html(READY)
    assert "Chat · Documents · Tools · 1,000 tokens of context" in empty_html(READY)
    assert "What can &lt;b&gt; do" in empty_html(replace(READY, title="<b>"))
    assert "You can write while the model loads." in empty_html(replace(READY, stage="loading"))
