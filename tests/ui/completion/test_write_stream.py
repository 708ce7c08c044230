"""What is asked for when a text is continued, without a page."""

from granite_demo.types.constraints import Constraint
from granite_demo.types.logprobs import ScoredToken, TokenAlternative
from granite_demo.ui.completion import token_tree
from granite_demo.ui.completion.token_tree import Run, Tree
from granite_demo.ui.completion.write_stream import picked, wanted
from granite_demo.ui.settings import DEFAULTS
from tests.fakes import FakeBackend


def test_a_branch_is_constrained_as_a_continuation_is() -> None:
    token = ScoredToken(7, "{", alternatives=(TokenAlternative(9, "{}", -1.0),))
    tree = token_tree.added(Tree("JSON: "), [Run(tokens=(token,), text="{", ends=(1,))])
    ask = picked(tree, 0, 9)
    wish = wanted(FakeBackend(), ask, True, "probability", "json_object", "", "", "", *DEFAULTS)
    assert ask.run == 1
    assert wish.constraint == wish.samplings[0].constraint == Constraint("json_object")
