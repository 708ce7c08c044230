"""One verdict by page and command line on what the API refuses; tests/api has the API's own."""

from typing import Any

import pytest

from granite_demo import flags
from granite_demo.errors import ConfigurationError, InvalidRequestError
from granite_demo.ui.settings import DEFAULTS, to_sampling
from tests.bad_requests import SAMPLED, Bad

NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed", "stop")
# On the page a seed is typed as text, and stop strings are the lines of a box.
ON_PAGE = [bad for bad in SAMPLED if set(bad.sampling) <= set(NAMES[:6]) or isinstance(bad.sampling.get("seed"), float)]
FLAGS = [*NAMES, "logprobs"]
ON_COMMAND_LINE = [bad for bad in SAMPLED if set(bad.sampling) <= set(FLAGS)]


@pytest.mark.parametrize("bad", ON_PAGE, ids=lambda bad: bad.name[:40])
def test_the_page_refuses_it_in_the_same_words(bad: Bad) -> None:
    values: dict[str, Any] = {**dict(zip(NAMES, DEFAULTS, strict=True)), **bad.sampling}
    with pytest.raises(InvalidRequestError) as refused:
        to_sampling(**values)
    assert bad.words in refused.value.user_text


@pytest.mark.parametrize("bad", ON_COMMAND_LINE, ids=lambda bad: bad.name[:40])
def test_the_command_line_refuses_it_in_the_same_words(bad: Bad) -> None:
    with pytest.raises(ConfigurationError) as refused:
        flags.sampling(bad.sampling)
    assert bad.words in refused.value.user_text


def test_most_of_the_table_is_for_both() -> None:
    assert len(ON_PAGE) > 20
    assert len(ON_COMMAND_LINE) > 30
