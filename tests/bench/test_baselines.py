"""Tests for the documented ways of transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from granite_demo.bench import baselines
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.types.load_options import LoadOptions
from tests.bench.made_up import loaded
from tests.loaded import load_checkpoint
from tests.tinymodels import VOCABULARY, write_checkpoint

CPU = LoadOptions(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = write_checkpoint(tmp_path_factory.mktemp("tiny"), "granite")
    return load_checkpoint(folder, CPU)


@pytest.fixture(scope="module")
def copies(tiny: LoadedModel) -> list[LoadedModel]:
    return baselines.load_copies(tiny, CPU)[0]


def test_a_cpu_has_copies_in_both_precisions(tiny: LoadedModel, copies: list[LoadedModel]) -> None:
    assert [copy.placement.dtype for copy in copies] == [torch.float32, torch.bfloat16]
    assert all(copy.model is not tiny.model for copy in copies)
    assert all(copy.model.generation_config.eos_token_id is None for copy in copies)
    assert tiny.model.generation_config.eos_token_id == 0


def test_like_returns_the_copy_in_the_precision_of_the_engine() -> None:
    both = [loaded(dtype=torch.float32), loaded(dtype=torch.bfloat16)]
    assert baselines.like(loaded(dtype=torch.bfloat16), both) == both[1:]
    assert baselines.like(loaded(dtype=torch.bfloat16), both[:1]) == []


def test_copies_that_do_not_fit_are_left_out(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("granite_demo.loading.placement.free_memory", lambda device: 1)
    copies, notes = baselines.load_copies(tiny, CPU)
    assert copies == []
    assert [note[:46] for note in notes] == [
        "The documented ways in float32 are not measure",
        "The documented ways in bfloat16 are not measur",
    ]


def test_one_user_gets_generate_and_many_get_batches(copies: list[LoadedModel]) -> None:
    assert baselines.way_for(1) == baselines.GENERATE
    assert baselines.way_for(2) == baselines.GENERATE_BATCH
    for users in (1, 3):
        run = baselines.answer(copies[0], [[5, 6, 7 + user] for user in range(users)], 6)
        assert [answer.tokens for answer in run.answers] == [6] * users
        assert all(0 < answer.first < answer.last < 60 for answer in run.answers)


def test_a_follow_up_computes_only_its_new_tokens(copies: list[LoadedModel]) -> None:
    first, added, read = [5, 6, 7, 8], [9, 10], list[int]()

    def count(module: Any, arguments: Any, inputs: dict[str, Any]) -> None:
        read.append(inputs["input_ids"].shape[1])

    hook = copies[0].model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        run = baselines.follow_up(copies[0], first, 3, added, 2)
    finally:
        hook.remove()
    # The first turn did not compute the last token of its answer.
    assert read == [4, 1, 1, 3, 1]
    assert run.tokens == 2


def test_a_static_cache_gives_as_many_tokens(copies: list[LoadedModel]) -> None:
    assert baselines.static(copies[0], [[5, 6, 7]], 6).tokens == 6


def test_a_load_as_documented_is_timed(tiny: LoadedModel) -> None:
    assert 0 < baselines.load_seconds(Path(tiny.model.name_or_path), torch.float32, "cpu") < 60


def test_an_end_token_does_not_end_an_answer(copies: list[LoadedModel]) -> None:
    model = copies[0].model
    ends = torch.nn.functional.one_hot(torch.tensor(0), VOCABULARY).float()
    hook = model.get_output_embeddings().register_forward_hook(lambda *parts: ends.expand_as(parts[2]))
    try:
        for users in (1, 2):
            assert baselines.answer(copies[0], [[5, 6]] * users, 5).tokens == 5 * users
    finally:
        hook.remove()


def test_an_error_in_the_thread_is_raised(copies: list[LoadedModel]) -> None:
    class Broken:
        device = torch.device("cpu")

        def generate(self, **_: Any) -> None:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        baselines.generate(replace(copies[0], model=Broken()), [1, 2], 3)


def test_a_missing_output_raises(copies: list[LoadedModel]) -> None:
    class Lossy:
        def generate_batch(self, *_: Any, **__: Any) -> dict[str, Any]:
            return {}

    with pytest.raises(RuntimeError, match="lost"):
        baselines.generate_batch(replace(copies[0], model=Lossy()), [[1], [2]], 3)


def test_the_folder_of_a_model_is_known(tiny: LoadedModel) -> None:
    assert (Path(tiny.model.name_or_path) / "config.json").is_file()
