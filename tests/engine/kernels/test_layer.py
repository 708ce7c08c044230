"""Fused layers with torch only, compared with transformers. tests/gpu/test_fused.py tests the kernels."""

import asyncio
import copy
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from granite_demo.engine.kernels import layer as fused
from granite_demo.engine.kernels.layer import FusedLayer, fuse
from tests.engine.fused_models import Loaded
from tests.engine.running import answer, batching_engine, reference, tiny_model
from tests.gpu.checkpoints import small_config, small_granite_4_config


@pytest.fixture(scope="module", params=[small_config, small_granite_4_config])
def plain(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    make: Any = AutoModelForCausalLM
    return make.from_config(request.param(num_hidden_layers=2), dtype=torch.float32).eval()


def test_greedy_answers_and_logits_are_those_of_transformers(plain: Any) -> None:
    ours = copy.deepcopy(plain)
    fuse(ours)
    ids = torch.randint(0, 1000, (2, 50))  # several rows
    with torch.inference_mode():
        assert torch.allclose(ours(ids).logits, plain(ids).logits, atol=1e-4)
    prompt = list(range(1, 60))
    expected = reference(Loaded(plain), prompt, 60)  # type: ignore[arg-type]
    assert reference(Loaded(ours), prompt, 60) == expected  # type: ignore[arg-type]
    assert len(set(expected)) > 30


@pytest.mark.slow
@pytest.mark.release
def test_500_tokens_of_the_sample_are_those_of_transformers(sample_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(sample_path, dtype=torch.float32).eval()
    prompt = list(range(300, 330))
    expected = reference(Loaded(model), prompt, 500, eos_token_id=None)  # type: ignore[arg-type]
    fuse(model)
    assert reference(Loaded(model), prompt, 500, eos_token_id=None) == expected  # type: ignore[arg-type]
    assert len(expected) == 500


def test_there_is_one_copy_of_the_weights_and_their_names_stay(plain: Any) -> None:
    ours = copy.deepcopy(plain)
    names = set(dict(ours.named_parameters()))
    fuse(ours)
    assert set(dict(ours.named_parameters())) == names
    mine = dict(ours.named_parameters())
    assert all(torch.equal(theirs, mine[name]) for name, theirs in plain.named_parameters())
    layer = ours.model.layers[0]
    attention = layer.self_attn
    groups: list[tuple[Any, ...]] = [(attention.q_proj, attention.k_proj, attention.v_proj)]
    if hasattr(layer, "mlp"):
        groups.append((layer.mlp.gate_proj, layer.mlp.up_proj))
    for group in groups:
        storages = {module.weight.untyped_storage().data_ptr() for module in group}
        assert len(storages) == 1
        assert group[0].weight.untyped_storage().nbytes() == sum(module.weight.nbytes for module in group)


def test_layers_are_fused_once(plain: Any) -> None:
    ours = copy.deepcopy(plain)
    fuse(ours)
    layers = list(ours.model.layers)
    fuse(ours)
    assert all(type(layer) is FusedLayer for layer in layers)
    assert list(ours.model.layers) == layers


class Kernels:
    """A replacement for the Triton kernels: torch functions whose results have a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.rotate, self.gate = fused.rotate, fused.gate

    def norm_qkv(self, x: Any, gain: Any, eps: float, weights: Any, cos: Any, sin: Any, rotated: int) -> torch.Tensor:
        normed = torch.nn.functional.rms_norm(x, gain.shape, gain, eps)
        return self.factor * fused.rotate(normed @ weights.codes.T, cos, sin, rotated)

    def norm_gate_up(self, x: Any, gain: Any, eps: float, weights: Any) -> torch.Tensor:
        return fused.gate(torch.nn.functional.rms_norm(x, gain.shape, gain, eps) @ weights.codes.T)

    def linear_add(self, x: Any, weights: Any, residual: Any, multiplier: float, share: float) -> torch.Tensor:
        return torch.addmm(residual, x, weights.codes.T, beta=share, alpha=multiplier)

    def linear(self, x: Any, weights: Any) -> torch.Tensor:
        return torch.nn.functional.linear(x, weights.codes)

    def PagedAttention(self, *_: Any) -> None:
        """Not used: on a CPU, there are no page tables."""

    def reads_prompts(self, device: Any) -> bool:
        return True

    def write_cache(self, qkv: Any, heads: int, keys: Any, values: Any, places: Any) -> None:
        _, count, size = keys.shape
        _, keys[places], values[places] = qkv.view(len(qkv), -1, size).split([heads, count, count], dim=1)

    def attend_to_prompts(
        self, qkv: Any, heads: int, keys: Any, values: Any, index: Any, starts: Any, ends: Any, scaling: float
    ) -> torch.Tensor:
        size, group, out = keys.shape[2], heads // keys.shape[1], torch.zeros(len(qkv), heads * keys.shape[2])
        known = (keys, values) if index is None else (keys[index], values[index])
        for (first, last), (begin, end) in zip(pairwise(starts.tolist()), pairwise(ends.tolist()), strict=True):
            query = qkv[first:last].view(last - first, -1, size)[:, :heads].transpose(0, 1)
            key, value = (kept[begin:end].repeat_interleave(group, 1).transpose(0, 1) for kept in known)
            mask = torch.ones(last - first, end - begin, dtype=torch.bool).tril(end - begin - (last - first))
            attended = scaled_dot_product_attention(query, key, value, mask, scale=scaling)
            out[first:last] = attended.transpose(0, 1).flatten(1)
        return out


@pytest.mark.parametrize("kind", ["granite", "granitemoehybrid"])
async def test_answers_of_the_batching_engine_are_those_of_transformers(kind: str) -> None:
    loaded = tiny_model() if kind == "granite" else tiny_model(model=tiny_granite_4())
    plain = copy.deepcopy(loaded.model)
    prompts = [list(range(1, 60)), [5, 6, 7], [40 - index * 7 % 30 for index in range(300)]]
    expected = [reference(loaded, prompt, 40) for prompt in prompts]
    fuse(loaded.model, Kernels(1.0))
    # A continuation of the last prompt, which is processed in two parts.
    longer = prompts[2] + expected[2] + [3, 4]
    with closing(batching_engine(loaded, prefill=128)) as engine:
        assert await asyncio.gather(*(answer(engine, prompt, max_tokens=40) for prompt in prompts)) == expected
        assert await answer(engine, longer, max_tokens=40) == reference(Loaded(plain), longer, 40)  # type: ignore[arg-type]


def tiny_granite_4() -> Any:
    """``tiny_model`` in the type of Granite 4.0."""
    torch.manual_seed(0)
    sizes = tiny_model().model.config.to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "max_position_embeddings", "initializer_range")  # fmt: skip
    config = small_granite_4_config(**{name: sizes[name] for name in names})
    make: Any = AutoModelForCausalLM
    return make.from_config(config, dtype=torch.float32).eval()


def test_kernels_are_tried_before_they_are_used(plain: Any) -> None:
    assert fused.trial(copy.deepcopy(plain), Kernels(1.0)) == ""
    assert fused.trial(copy.deepcopy(plain), Kernels(1.1)) == "its kernels have an error of 10% on this GPU"
    assert "an error of nan%" in fused.trial(copy.deepcopy(plain), Kernels(float("nan")))
    assert fused.trial(copy.deepcopy(plain), object()) == "its kernels do not run here (AttributeError)"
