"""The Write tab: what Accept refuses, and what is known of the tokens."""

from dataclasses import replace

import pytest

from granite_demo.errors import InvalidRequestError
from granite_demo.types.prompt_view import PromptView
from granite_demo.types.requests import GenerationRequest
from granite_demo.ui.completion.token_tree import Tree
from granite_demo.ui.completion.write import check_pending, counted
from tests.fakes import READY, FakeBackend


def test_samples_are_not_lost_by_accepting_none_of_them() -> None:
    with pytest.raises(InvalidRequestError, match="Take one of the samples first"):
        check_pending(Tree("Once"), "Once", (Tree("Once"), Tree("Once")))
    check_pending(Tree(), "Once", None)


def test_a_continuation_is_not_put_behind_another_text() -> None:
    with pytest.raises(InvalidRequestError, match="The text was changed since"):
        check_pending(Tree("Once", head=0), "Once more", None)
    check_pending(Tree("Once", head=0), "Once", None)


class Elsewhere(FakeBackend):
    """Tells at most how many tokens a prompt has."""

    async def inspect(self, request: GenerationRequest, parts: bool = False) -> PromptView | None:
        return None if parts else self.view


@pytest.mark.parametrize(
    ("stage", "view", "label", "words"),
    [
        ("ready", PromptView((), 12, 0, 4096), "12 tokens of 4,096", "other server does not tell which"),
        ("ready", None, "Tokens", "other server does not tell which"),
        ("loading", None, "Tokens", "Known when the model is ready."),
    ],
)
async def test_the_token_note_for_another_server(stage: str, view: PromptView, label: str, words: str) -> None:
    backend = Elsewhere()
    backend.state, backend.view = replace(READY, stage=stage), view  # type: ignore[arg-type]
    accordion, shown = await counted(backend, "Once", False)
    assert accordion.label == label
    assert words in shown
