import pytest

from granite_demo.errors import InvalidRequestError
from granite_demo.tokentree import Tree
from granite_demo.ui.write_events import check_pending


def test_samples_are_not_lost_by_accepting_none_of_them() -> None:
    with pytest.raises(InvalidRequestError, match="Take one of the samples first"):
        check_pending(Tree("Once"), "Once", (Tree("Once"), Tree("Once")))
    check_pending(Tree(), "Once", None)


def test_a_continuation_is_not_put_behind_another_text() -> None:
    with pytest.raises(InvalidRequestError, match="The text was changed since"):
        check_pending(Tree("Once", head=0), "Once more", None)
    check_pending(Tree("Once", head=0), "Once", None)
