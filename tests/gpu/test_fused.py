"""The kernels of the fused layers, and the layers whole, beside exact results."""

import asyncio
import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from granite_demo.engine.factory import create_engine
from granite_demo.engine.kernels.layer import fuse, rotate
from granite_demo.engine.kernels.weights import join_nf4_weights, join_weights
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models.config import Shape
from granite_demo.types.engine_kinds import BATCHING, STATIC, EngineKind
from granite_demo.types.load_options import LoadOptions
from tests.engine.running import answer, reference
from tests.fakes import SOURCE
from tests.gpu.checkpoints import small_config, small_granite_4_config
from tests.loaded import placed

pytestmark = pytest.mark.gpu


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())


def linear(results: int, inputs: int, dtype: torch.dtype) -> torch.nn.Linear:
    module = torch.nn.Linear(inputs, results, bias=False, device="cuda", dtype=dtype)
    module.weight.data = drawn(results, inputs, dtype=dtype) / inputs**0.5
    return module


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-3)])
@pytest.mark.parametrize("sizes", [(512, 8, 4, 64, 1000), (576, 9, 3, 64, 1536), (4096, 32, 8, 128, 12800)])
def test_kernels_of_one_token(sizes: tuple[int, ...], dtype: torch.dtype, most: float) -> None:
    from granite_demo.engine.kernels import matvec

    hidden, heads, kv_heads, size, width = sizes
    x, gain, residual = drawn(1, hidden, dtype=dtype), drawn(hidden, dtype=dtype), drawn(1, hidden, dtype=dtype)
    cos, sin = drawn(2, 1, size, dtype=dtype)
    normed = F.rms_norm(x.double(), (hidden,), gain.double(), 1e-5)
    turned = heads + kv_heads
    weights = join_weights([linear(count * size, hidden, dtype) for count in (heads, kv_heads, kv_heads)])
    exact = rotate(normed @ weights.codes.double().T, cos.double(), sin.double(), turned)
    assert error(matvec.norm_qkv(x, gain, 1e-5, weights, cos, sin, turned), exact) < most
    weights = join_weights([linear(width, hidden, dtype) for _ in range(2)])
    gate, up = (normed @ weights.codes.double().T).chunk(2, dim=-1)
    gated = matvec.norm_gate_up(x, gain, 1e-5, weights)
    assert error(gated, F.silu(gate) * up) < most
    weights = join_weights([linear(hidden, width, dtype)])
    exact = residual.double() + 0.22 * (gated.double() @ weights.codes.double().T)
    assert error(matvec.linear_add(gated, weights, residual, 0.22), exact) < most
    many = drawn(70, turned * size + kv_heads * size, dtype=dtype)
    cos, sin = drawn(2, 70, size, dtype=dtype)
    exact = rotate(many.double(), cos.double(), sin.double(), turned)
    assert error(matvec.rotate(many.clone(), cos, sin, turned), exact) < most
    gate, up = drawn(70, 2 * width, dtype=dtype).chunk(2, dim=-1)
    exact = F.silu(gate.double()) * up.double()
    assert error(matvec.gate(torch.cat((gate, up), dim=-1)), exact) < most


def in_nf4(*results: int, inputs: int) -> list[Any]:
    import bitsandbytes

    bnb: Any = bitsandbytes.nn
    modules = []
    for count in results:
        module = bnb.Linear4bit(inputs, count, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16)
        exact = drawn(count, inputs, dtype=torch.float32).cpu() / inputs**0.5
        module.weight = bnb.Params4bit(exact, requires_grad=False, quant_type="nf4")
        modules.append(module.to("cuda"))
    return modules


def numbers_of(modules: list[Any]) -> torch.Tensor:
    from bitsandbytes import functional

    weights = [functional.dequantize_4bit(module.weight.data, module.weight.quant_state) for module in modules]
    assert weights[0].dtype == torch.float32
    return torch.cat(weights).double()


@pytest.mark.parametrize("sizes", [(512, 8, 4, 64, 1000), (576, 9, 3, 64, 1536), (4096, 32, 8, 128, 12800)])
def test_kernels_of_one_token_in_nf4(sizes: tuple[int, ...]) -> None:
    from granite_demo.engine.kernels import matvec

    hidden, heads, kv_heads, size, width = sizes
    x, gain, residual = drawn(1, hidden), drawn(hidden), drawn(1, hidden)
    cos, sin = drawn(2, 1, size)
    normed = F.rms_norm(x.double(), (hidden,), gain.double(), 1e-5)
    turned = heads + kv_heads
    modules = in_nf4(*(count * size for count in (heads, kv_heads, kv_heads)), inputs=hidden)
    exact = rotate(normed @ numbers_of(modules).T, cos.double(), sin.double(), turned)
    assert error(matvec.norm_qkv(x, gain, 1e-5, join_nf4_weights(modules), cos, sin, turned), exact) < 6e-3
    modules = in_nf4(width, width, inputs=hidden)
    gate, up = (normed @ numbers_of(modules).T).chunk(2, dim=-1)
    gated = matvec.norm_gate_up(x, gain, 1e-5, join_nf4_weights(modules))
    assert error(gated, F.silu(gate) * up) < 6e-3
    if width % 64 == 0:
        modules = in_nf4(hidden, inputs=width)
        exact = residual.double() + 0.22 * (gated.double() @ numbers_of(modules).T)
        assert error(matvec.linear_add(gated, join_nf4_weights(modules), residual, 0.22), exact) < 6e-3


def test_products_in_nf4_are_as_exact_as_those_of_bitsandbytes() -> None:
    from granite_demo.engine.kernels import matvec

    modules = in_nf4(512, 256, 256, inputs=2048)
    x, nothing = drawn(1, 2048), torch.zeros(1, 1024, device="cuda", dtype=torch.bfloat16)
    exact = x.double() @ numbers_of(modules).T
    before = torch.cat([module(x) for module in modules], dim=-1)
    weights = join_nf4_weights(modules)
    assert error(torch.cat([module(x) for module in modules], dim=-1), before.double()) < 1e-5
    ours = error(matvec.linear_add(x, weights, nothing, 1.0), exact)
    print(f"error in NF4: {ours:.2e}, that of bitsandbytes {error(before, exact):.2e}")
    assert ours < 1.1 * error(before, exact)


@pytest.mark.parametrize(
    "lengths", [[0], [300], [4000], [0, 5, 63, 64, 255, 256, 700, 3000], [-1, 31, 1000], [900] * 64]
)
@pytest.mark.parametrize("size", [64, 128])
def test_attention_over_pages(lengths: list[int], size: int) -> None:
    from granite_demo.engine.kernels.decode_attention import PagedAttention

    heads, kv_heads, page, count = 32, 8, 256, len(lengths)
    pages = 16
    keys, values = drawn(count * pages, page, kv_heads, size), drawn(count * pages, page, kv_heads, size)
    table = torch.randperm(count * pages, device="cuda").view(count, pages).int()
    sizes, qkv = torch.tensor(lengths, dtype=torch.int32, device="cuda"), drawn(count, (heads + 2 * kv_heads) * size)
    attend = PagedAttention(64, heads, kv_heads, size, qkv.device)
    for _ in range(2):  # the second finds what the first left
        found = attend.attend(qkv, keys, values, table, sizes, size**-0.5)
    query, key, value = qkv.view(count, -1, size).split([heads, kv_heads, kv_heads], dim=1)
    for row, length in enumerate(lengths):
        if length < 0:
            assert not found[row].any()
            continue
        places = table[row].long()
        all_keys, all_values = (
            torch.cat((kept[places].flatten(0, 1)[:length], new[row][None])).double().repeat_interleave(4, 1)
            for kept, new in ((keys, key), (values, value))
        )
        scores = torch.einsum("hd,thd->ht", query[row].double(), all_keys) * size**-0.5
        exact = torch.einsum("ht,thd->hd", scores.softmax(-1), all_values).flatten()
        assert error(found[row], exact) < 6e-3
        assert torch.equal(keys[places[length // page], length % page], key[row])
        assert torch.equal(values[places[length // page], length % page], value[row])


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("parts", [[(300, 0)], [(33, 700), (1, 5), (0, 0), (512, 100), (128, 128)], [(2048, 6000)]])
def test_attention_of_prompts(parts: list[tuple[int, int]], size: int) -> None:
    from granite_demo.engine.kernels.prefill_attention import attend

    heads, kv_heads = 8, 2
    new, known = [part[0] for part in parts], [sum(part) for part in parts]
    starts, ends = (torch.tensor([0, *sizes], device="cuda").cumsum(0).int() for sizes in (new, known))
    qkv = drawn(sum(new) + 9, (heads + 2 * kv_heads) * size)
    keys, values = drawn(2, 10_000, kv_heads, size)
    index = torch.randperm(10_000, device="cuda")[: sum(known)]
    ways = [(keys, values, index)]
    if new == known:
        ways.append((*qkv.view(len(qkv), -1, size)[:, heads:].split(kv_heads, dim=1), None))
    for keys, values, index in ways:
        found = attend(qkv, heads, keys, values, index, starts, ends, size**-0.5)
        for row, (count, past) in enumerate(parts):
            own, seen = slice(*starts[row : row + 2].tolist()), slice(*ends[row : row + 2].tolist())
            query = qkv[own, : heads * size].view(count, heads, size).double()
            key, value = (
                (kept if index is None else kept[index])[seen].double().repeat_interleave(heads // kv_heads, 1)
                for kept in (keys, values)
            )
            scores = torch.einsum("qhd,khd->hqk", query, key) * size**-0.5
            hidden = torch.ones(count, count + past, device="cuda").tril(past) == 0
            exact = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), value)
            if count:
                assert error(found[own], exact.flatten(1)) < 6e-3


def test_keys_and_values_are_kept() -> None:
    from granite_demo.engine.kernels.prefill_attention import write_cache

    qkv, cache, places = drawn(70, (9 + 2 * 3) * 64), drawn(2, 500, 3, 64), torch.randperm(500, device="cuda")[:70]
    write_cache(qkv, 9, cache[0], cache[1], places)
    _, *parts = qkv.view(70, 15, 64).split([9, 3, 3], dim=1)
    for kept, new in zip(cache, parts, strict=True):
        assert torch.equal(kept[places], new)


def small(dtype: str, attention: str, make_config: Any = small_config) -> LoadedModel:
    torch.manual_seed(0)
    placement = placed(LoadOptions(device="cuda", dtype=dtype, attention=attention))  # type: ignore[arg-type]
    make: Any = AutoModelForCausalLM
    model = make.from_config(make_config(), attn_implementation=attention, dtype=placement.dtype).cuda().eval()
    shape = Shape.from_config(model.config.to_dict())
    return LoadedModel(model, None, SOURCE, placement, 4096, frozenset(), shape=shape)


@pytest.mark.parametrize("kind", [BATCHING, STATIC])
@pytest.mark.parametrize("make_config", [small_config, small_granite_4_config])
async def test_500_greedy_tokens_in_float32_equal_generate(make_config: Any, kind: EngineKind) -> None:
    loaded = small("float32", "sdpa", make_config)
    prompts = [list(range(2, 100)), list(range(600, 3, -1))]
    expected = [reference(loaded, prompt, 500) for prompt in prompts]
    engine = create_engine(loaded, kind)
    assert ("Layers", "fused") in [fact[:2] for fact in engine.facts]
    assert await asyncio.gather(*(answer(engine, prompt, max_tokens=500) for prompt in prompts)) == expected
    assert min(len(set(ids)) for ids in expected) > 50
    engine.close()
    assert loaded.model.config._attn_implementation == "sdpa"


@torch.inference_mode()
def test_logits_in_bfloat16_are_no_further_from_float32_than_those_of_transformers() -> None:
    exact = small("float32", "sdpa").model
    plain = copy.deepcopy(exact).to(torch.bfloat16)
    fused = copy.deepcopy(plain)
    from granite_demo.engine.kernels import matvec

    fuse(fused, matvec)
    errors: dict[str, list[float]] = {"plain": [], "fused": []}
    ids = torch.randint(0, 1000, (1, 300), device="cuda")
    for length in (300, 1):  # many tokens at once, and one
        for name, model in (("plain", plain), ("fused", fused)):
            logits = model(ids[:, :length]).logits.double()
            errors[name].append(error(logits, exact(ids[:, :length]).logits.double()))
    print(errors)
    assert all(ours < 1.2 * theirs for ours, theirs in zip(errors["fused"], errors["plain"], strict=True)), errors
