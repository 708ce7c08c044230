"""Tests for the bytes of a step, the limit, and the number of users that fit."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from granite_demo.bench.roofline import bandwidth, fitting_users, step_bytes, token_limit
from granite_demo.models.config import Mamba, Shape, count_parameters
from granite_demo.models.gguf_header import read_header
from granite_demo.types.load_options import KvCache
from tests.bench.made_up import KV_BYTES, SHAPE, loaded
from tests.fakes import SOURCE
from tests.gguf_files import TINY, granite, write


def test_a_step_reads_all_weights_once_and_the_cache_of_each_user() -> None:
    assert step_bytes(loaded(), users=1, context=0) == 10_000
    assert step_bytes(loaded(), users=3, context=50) == 10_000 + 3 * 50 * KV_BYTES


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_the_cache_of_a_gguf_file_has_the_size_that_its_header_gives(tmp_path: Path, kind: KvCache) -> None:
    header = read_header(write(tmp_path / "tiny.gguf", *granite(TINY)))
    model = SimpleNamespace(header=header, process=SimpleNamespace(options=SimpleNamespace(cache_type=kind)))
    model_of_file = replace(loaded(None), model=model, source=replace(SOURCE, gguf=tmp_path / "tiny.gguf"))
    each = 2 * 2 * 2 * 16 * {"f16": 2, "q8_0": 34 / 32}[kind]
    assert step_bytes(model_of_file, users=3, context=50) == 10_000 + 3 * 50 * each
    assert fitting_users((1, 8), model_of_file, 100, int(2 * 8 * 100 * each))[0] == (1, 8)
    assert fitting_users((1, 8), model_of_file, 100, int(2 * 7 * 100 * each))[0] == (1,)


def test_the_cache_has_the_precision_of_the_weights() -> None:
    assert step_bytes(loaded(dtype=torch.bfloat16), users=1, context=50) == 10_000 + 50 * KV_BYTES / 2


def test_the_table_of_a_separate_embedding_is_not_read() -> None:
    untied = replace(SHAPE, tie_word_embeddings=False)
    assert step_bytes(loaded(untied), users=1, context=0) == 10_000 - 4 * 100 * 8


def test_experts_that_no_token_uses_are_not_read() -> None:
    mixture = Shape(
        model_type="granitemoe", context_length=1000, vocab_size=100, hidden_size=8, layers=2, attention_layers=2,
        heads=2, kv_heads=1, head_dim=4, experts=4, experts_per_token=1, expert_size=16,
    )  # fmt: skip
    experts = 4 * count_parameters(mixture).experts
    assert step_bytes(loaded(mixture), users=1, context=0) == pytest.approx(10_000 - experts * 3 / 4)
    assert step_bytes(loaded(mixture), users=2, context=0) == pytest.approx(10_000 - experts * 9 / 16)


def test_state_space_layers_read_their_state() -> None:
    mamba = Mamba(heads=2, head_dim=8, state_size=4)
    hybrid = replace(SHAPE, model_type="granitemoehybrid", shared_size=16, attention_layers=1, mamba=mamba)
    state = (16 + 2 * 4) * 4 * 4 + 4 * 16 * 4
    assert step_bytes(loaded(hybrid), users=2, context=0) == 10_000 + 2 * state


def test_the_limit_is_the_bandwidth_over_the_bytes_of_a_step() -> None:
    assert token_limit(loaded(), users=1, context=0, speed=1e6) == 100
    assert token_limit(loaded(), users=4, context=0, speed=1e6) == 400
    assert token_limit(loaded(None), users=4, context=0, speed=1e6) is None


@pytest.mark.release
def test_the_bandwidth_is_plausible() -> None:
    assert 1e8 < bandwidth("cpu") < 1e13


def test_more_users_than_fit_are_left_out_with_a_note() -> None:
    room_for_five = 2 * 5 * 100 * KV_BYTES
    kept, note = fitting_users((1, 4, 16), loaded(device="cuda"), tokens=100, free=room_for_five)
    assert kept == (1, 4)
    assert note == "Not measured: 16 users (at most 5 fit in 0.0 GB)."
    assert fitting_users((1, 4), loaded(device="cuda"), 100, room_for_five) == ((1, 4), "")


def test_a_cpu_has_fewer_users() -> None:
    kept, note = fitting_users((1, 16, 64), loaded(), tokens=100, free=10**12)
    assert kept == (1, 16)
    assert note == "Not measured: 64 users (at most 16 on a CPU)."
    assert fitting_users((1, 64), loaded(device="cuda"), 100, 10**12)[0] == (1, 64)


def test_one_user_is_always_measured() -> None:
    assert fitting_users((32,), loaded(), tokens=100, free=10**12)[0] == (1,)
    assert fitting_users((4,), loaded(None, device="cuda"), tokens=100, free=0) == ((4,), "")
