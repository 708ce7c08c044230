"""The sampling that is recommended for a model: by its file, else by the catalogue."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from granite_demo.models import catalogue
from granite_demo.models.recommended_sampling import FILE, recommended_sampling
from granite_demo.types.sampling_params import SamplingParams

NEW = catalogue.MODELS["granite-4.2-3b"]


@pytest.mark.parametrize(
    ("given", "sampling"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, SamplingParams(temperature=0.6, top_p=0.9)),
        ({"do_sample": True, "top_k": 20}, SamplingParams(temperature=1.0, top_k=20)),
        ({"do_sample": False, "temperature": 0.6}, None),
        ({"do_sample": True, "temperature": "hot"}, None),
        ({}, None),
        ([], None),
    ],
)
def test_the_file_takes_precedence(tmp_path: Path, given: Any, sampling: SamplingParams | None) -> None:
    (tmp_path / FILE).write_text(json.dumps(given))
    found = recommended_sampling(NEW, tmp_path)
    assert found.sampling == (sampling or NEW.sampling)
    assert (FILE in found.reason) == (sampling is not None)


def test_of_a_folder_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    found = recommended_sampling(replace(NEW, path=tmp_path, sampling=SamplingParams()), tmp_path)
    assert (found.words, found.reason) == ("greedy", f"{FILE} recommends no sampling")


def test_the_sample_has_the_values_of_its_makers(tmp_path: Path) -> None:
    assert recommended_sampling(catalogue.SAMPLE, tmp_path).words == "temperature 0.2, top-p 0.9"
