"""The sampling that the makers of a model recommend: in its ``generation_config.json``, or in their examples."""

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from granite_demo.errors import InvalidRequestError
from granite_demo.models.catalogue import ModelSpec
from granite_demo.types.sampling_params import SamplingParams

FILE = "generation_config.json"
NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""The fields of that file with the name that they have in SamplingParams."""


@dataclass(frozen=True, slots=True)
class RecommendedSampling:
    """The recommended values, and where they come from."""

    sampling: SamplingParams
    reason: str

    @property
    def words(self) -> str:
        """The values for the screen."""
        if self.sampling.temperature == 0:
            return "greedy"
        return f"temperature {self.sampling.temperature:g}, top-p {self.sampling.top_p:g}"


def recommended_sampling(spec: ModelSpec, folder: Path) -> RecommendedSampling:
    """Return what is recommended for ``spec``, whose files are in ``folder``.

    A file that samples takes precedence over the catalogue. A file that does not sample says nothing: its makers left
    the defaults of transformers.
    """
    given = _in_file(folder / FILE)
    if given is not None:
        return RecommendedSampling(given, f"recommended in {FILE}; see the Sampling panel")
    if spec.path or "/" in spec.name:
        return RecommendedSampling(SamplingParams(), f"{FILE} recommends no sampling")
    return RecommendedSampling(spec.sampling, "as in the examples of the model card; see the Sampling panel")


@lru_cache(maxsize=16)
def _in_file(path: Path) -> SamplingParams | None:
    given: Any = None
    with suppress(OSError, ValueError, RecursionError):
        given = json.loads(path.read_bytes())
    if not isinstance(given, dict) or given.get("do_sample") is not True:
        return None
    values = {name: given[name] for name in NAMES if given.get(name) is not None}
    with suppress(InvalidRequestError):
        return SamplingParams(**{"temperature": 1.0, **values})
    return None
