"""Float32 products of 16-bit weights."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from granite_demo.loading import float32_prefill
from granite_demo.loading.float32_prefill import (
    ATTENTION,
    FEW_ROWS,
    Float32Products,
    attention,
    float32_linear,
    register_attention,
)
from tests.tinymodels import KINDS, write_checkpoint

BF16 = torch.bfloat16


def random(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


class Products(TorchDispatchMode):
    """A context that records the rows and the precision of each matrix product."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[int, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in ("linear", "mm", "addmm", "_grouped_mm"):
            x = args[1] if name == "addmm" else args[0]
            self.seen.append((x.numel() // x.shape[-1], x.dtype))
        return func(*args, **(kwargs or {}))

    @property
    def dtypes(self) -> list[torch.dtype]:
        """The precisions of the products."""
        return [dtype for _, dtype in self.seen]


@pytest.mark.parametrize("bias", [None, random(100)])
@pytest.mark.parametrize("shape", [(FEW_ROWS + 1, 32), (1, 50, 32), (2, 3, 4, 32)], ids=str)
def test_many_rows_are_computed_in_float32_and_rounded_once(bias: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    x, weight = random(*shape), random(100, 32)
    with Products() as products:
        product = float32_linear(x, weight, bias)
    assert set(products.dtypes) == {torch.float32}
    exact = linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert product.dtype == BF16
    assert torch.allclose(product.double(), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 32), (1, FEW_ROWS, 32), (32,)], ids=str)
def test_few_rows_stay_in_16_bits(shape: tuple[int, ...]) -> None:
    x, weight = random(*shape), random(100, 32)
    with Products() as products:
        product = float32_linear(x, weight)
    assert torch.float32 not in products.dtypes
    assert torch.equal(product, linear(x, weight))


def test_float32_weights_are_not_changed() -> None:
    x, weight = random(50, 32, dtype=torch.float32), random(100, 32, dtype=torch.float32)
    assert torch.equal(float32_linear(x, weight), linear(x, weight))


def test_large_weights_are_converted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = random(50, 32), random(100, 32)
    at_once = float32_linear(x, weight)
    monkeypatch.setattr(float32_prefill, "CONVERTED_WEIGHTS", 32 * 7)
    with Products() as products:
        assert torch.allclose(float32_linear(x, weight).float(), at_once.float(), rtol=2**-7, atol=1e-5)
    assert len(products.seen) == 15
    monkeypatch.setattr(float32_prefill, "CONVERTED_WEIGHTS", 1)
    assert float32_linear(x, weight).shape == (50, 100)


def test_linear_layers_are_changed_only_inside_the_context() -> None:
    layer = torch.nn.Linear(32, 100, dtype=BF16)
    x = random(50, 32)
    with torch.inference_mode(), Products() as products:
        with Float32Products():
            layer(x)
        layer(x)
    assert products.dtypes == [torch.float32, BF16]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_granite_computes_prompts_in_float32(tmp_path: Path, kind: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path, kind), dtype=BF16)
    ids = torch.arange(40)[None]
    with torch.inference_mode(), Products() as products:
        with Float32Products():
            ours = model(ids, logits_to_keep=1).logits
        in_16_bits = model(ids, logits_to_keep=1).logits
    assert {dtype for rows, dtype in products.seen[: len(products.seen) // 2] if rows > 40} <= {torch.float32}
    assert {dtype for rows, dtype in products.seen if rows == 40} == {torch.float32, BF16}
    assert ours.dtype == BF16
    assert torch.allclose(ours, in_16_bits, atol=0.1)


@pytest.mark.parametrize("counts", [[10, 0, 20, 1], [31, 0, 0, 0]], ids=str)
def test_experts_equal_the_products_of_torch(counts: list[int]) -> None:
    x, weights = random(31, 32), random(4, 24, 32).transpose(1, 2)
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    expected = torch.nn.functional.grouped_mm(x, weights, offs=ends)
    with Products() as products, Float32Products():
        ours = torch.nn.functional.grouped_mm(x, weights, offs=ends)
    assert (counts[0], torch.float32) in products.seen
    assert ours.dtype == BF16
    assert torch.allclose(ours.float(), expected.float(), rtol=2**-6, atol=1e-5)


@pytest.mark.parametrize("count", [1, 8])
def test_attention_equals_float32(count: int) -> None:
    query, key, value = random(1, 4, count, 16), random(1, 2, 30, 16), random(1, 2, 30, 16)
    module: Any = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    mask = None if count == 1 else torch.ones(1, 1, count, 30, dtype=torch.bool)
    output, _ = attention(module, query, key, value, mask, scaling=0.25)
    exact, _ = attention(module, query.float(), key.float(), value.float(), mask, scaling=0.25)
    assert output.dtype == BF16
    assert output.shape == (1, count, 4, 16)
    assert torch.allclose(output.float(), exact, rtol=2**-7, atol=2e-2 if count > 1 else 1e-5)


@pytest.mark.parametrize("kind", ["granite", "hybrid"])
def test_transformers_can_use_the_attention(tmp_path: Path, kind: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path, kind), dtype=torch.float32)
    ids = torch.arange(1, 20)[None]
    options: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False}
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    register_attention()
    model.set_attn_implementation(ATTENTION)
    assert torch.equal(model.generate(ids, attention_mask=torch.ones_like(ids), **options), plain)
