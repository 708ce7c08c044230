"""Which models are fused, and the reason that is shown."""

import copy
from typing import Any

import pytest
import torch
from transformers import GraniteForCausalLM

from granite_demo.engine.kernels.eligibility import fusion, fusion_problem, shape_problem, sums_facts
from granite_demo.loading.tensor_parallel import ALONE, Group
from tests.engine.fused_models import Loaded
from tests.gpu.checkpoints import small_config, small_granite_4_config


@pytest.fixture(scope="module")
def plain() -> Any:
    torch.manual_seed(0)
    return GraniteForCausalLM(small_config(num_hidden_layers=2)).eval()


@pytest.mark.parametrize(
    ("placement", "problem"),
    [
        ({"device": "cpu"}, "only on a CUDA GPU"),
        ({"spread": True}, "spread over several GPUs"),
        ({"attention": "eager"}, "the attention is eager"),
        ({"quantization": "int8"}, "its weights are int8 of bitsandbytes with bfloat16"),
        ({"quantization": "nf4", "dtype": torch.float32}, "its weights are nf4 of bitsandbytes with float32"),
    ],
)
def test_when_layers_are_not_fused(plain: Any, placement: dict[str, Any], problem: str) -> None:
    assert problem in fusion_problem(Loaded(plain, **placement))  # type: ignore[arg-type]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_dense_granite_on_a_gpu_is_fused(plain: Any, monkeypatch: pytest.MonkeyPatch, quantization: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert fusion_problem(Loaded(plain, quantization=quantization)) == ""  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert fusion_problem(Loaded(plain)) == "Triton is not installed"  # type: ignore[arg-type]


def test_other_architectures_and_shapes_are_not_fused(plain: Any) -> None:
    other = copy.copy(plain)
    other.config = copy.copy(plain.config)
    other.config.model_type = "granitemoe"
    assert "the type of this one is granitemoe" in fusion_problem(Loaded(other))  # type: ignore[arg-type]
    assert shape_problem(small_granite_4_config()) == ""
    for change, problem in {
        "num_local_experts=8": "this one has experts",
        "layer_types=mamba": "this one has Mamba layers",
        "position_embedding_type=None": "it has no rotary embedding",
    }.items():
        config, (name, value) = small_granite_4_config(), change.split("=")
        setattr(config, name, {"8": 8, "mamba": ["full_attention", "linear_attention"], "None": None}[value])
        assert problem in shape_problem(config)
    assert shape_problem(small_config(attention_bias=True)) == "its linear layers have biases"
    assert shape_problem(small_config(hidden_act="gelu")) == "its activation is gelu"
    assert shape_problem(small_config(head_dim=80)) == "its heads have 80 dimensions"
    assert shape_problem(small_config()) == ""


def test_the_facts_about_fused_layers() -> None:
    plain, fused = fusion("it rains"), fusion("")
    assert (plain.value, fused.value) == (False, True)
    assert plain.fact("Layers") == ("Layers", "as transformers computes them", "not fused: it rains")
    assert str(fused) == "fused"
    group = Group(2)
    assert sums_facts(group)[0][:2] == ("Sums", "by NCCL")
    group.peer_access = True
    assert sums_facts(group)[0][1] == "for one token, each GPU writes to the others"
    assert sums_facts(ALONE) == ()
