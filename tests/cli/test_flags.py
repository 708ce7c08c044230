"""What flags stand for, and what is told about wrong ones."""

from typing import Any

import pytest

from granite_demo.cli import flags
from granite_demo.errors import ConfigurationError, InvalidRequestError
from granite_demo.types.messages import Controls
from granite_demo.types.sampling_params import SamplingParams


def test_the_sampling_parameters_are_picked_from_all_flags() -> None:
    given = {"temperature": 0.5, "top_k": 3, "stop": ["a", "b"], "seed": None, "model": "sample", "text": "x"}
    assert flags.sampling(given) == SamplingParams(temperature=0.5, top_k=3, stop=("a", "b"))
    assert flags.sampling({"stop": None, "seed": 0}) == SamplingParams(seed=0)


@pytest.mark.parametrize(
    "given", [{"temperature": 3.0}, {"top_p": 0.0}, {"seed": -1}, {"stop": [""]}, {"max_tokens": 0}, {"min_p": 2}]
)
def test_a_bad_value_is_a_bad_setting_with_the_words_of_the_page(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as on_page:
        SamplingParams(**given)
    with pytest.raises(ConfigurationError) as as_flag:
        flags.sampling(given)
    assert as_flag.value.user_text == on_page.value.user_text


def test_thinking() -> None:
    assert flags.controls(None) == Controls()
    assert flags.controls("low") == Controls(thinking="low")
    with pytest.raises(ConfigurationError, match="^--thinking must be one of off, low, full, not 'much'"):
        flags.controls("much")
