"""The static runner on a GPU: what is recorded in CUDA graphs says the same as what is computed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from granite_demo.engine.decoder_layers import decoder_layers
from granite_demo.engine.interleaved.row_attention import rows_problem
from granite_demo.engine.interleaved.static import StaticRunner, StaticSlot
from granite_demo.engine.interleaved.static_steps import Sizes
from granite_demo.engine.token_stream import Cancelled
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models import catalogue
from granite_demo.types.load_options import LoadOptions
from tests.loaded import load_checkpoint
from tests.tinymodels import write_checkpoint

pytestmark = pytest.mark.gpu

PROMPT = [5 + index * 7 % 50 for index in range(20)]


def load(folder: Path, kind: str, **options: Any) -> LoadedModel:
    write_checkpoint(folder / kind, kind)
    return load_checkpoint(folder / kind, LoadOptions(device="cuda", context=512, **options), catalogue.SAMPLE)


def runner(loaded: LoadedModel, **options: Any) -> StaticRunner:
    made = StaticRunner(loaded, 2, sizes=Sizes(shortest=64, padded=(32, 128)), **options)
    made.warm_up()
    return made


def nothing() -> None:
    pass


def write(made: StaticRunner, slot: StaticSlot, prompt: list[int], count: int) -> list[int]:
    """The next tokens after ``prompt``, greedily."""
    logits = made.forward(slot, prompt[len(slot.ids) :], nothing)
    ids = [int(logits.argmax())]
    while len(ids) < count:
        ids.append(int(made.forward(slot, ids[-1:], nothing).argmax()))
    return ids


def read(made: StaticRunner, ids: list[int]) -> torch.Tensor:
    """The logits after the first 100 of ``ids`` in chunks of 1, 59 and 40 tokens, then after each of the rest."""
    slot = made.open(ids)
    rows = [made.forward(slot, ids[at:end], nothing) for at, end in ((0, 1), (1, 60), (60, 100))]
    rows += [made.forward(slot, [token], nothing) for token in ids[100:]]
    made.close(slot)
    return torch.cat(rows).float()


def recorded(made: StaticRunner) -> bool:
    return made.facts[1][1].endswith("CUDA graphs")


@pytest.mark.parametrize("kind", ["granite", "granitemoe", "hybrid of attention"])
def test_recorded_equals_computed_token_for_token(tmp_path: Path, kind: str) -> None:
    loaded = load(tmp_path, kind, dtype="float32", quantization="none")
    answers = []
    for options in ({"record": None}, {}):
        made = runner(loaded, **options)
        slots = [made.open(PROMPT), made.open(PROMPT[::-1])]
        answers += [
            [write(made, slot, prompt, 300) for slot, prompt in zip(slots, (PROMPT, PROMPT[::-1]), strict=True)]
        ]
        assert recorded(made) == (not options), made.facts
        made.release()
    assert answers[0] == answers[1]
    assert len(set(answers[0][0])) > 5


@pytest.mark.parametrize(
    ("kind", "dtype", "quantization"),
    [
        ("granite", "bfloat16", "none"),
        ("granite", "float16", "none"),
        ("granite", "bfloat16", "nf4"),
        ("granitemoe", "bfloat16", "none"),
        ("hybrid of attention", "bfloat16", "none"),
    ],
)
@pytest.mark.filterwarnings("ignore:inner dimension")  # bitsandbytes, of a small model
def test_rows_and_views_agree_in_16_bits(tmp_path: Path, kind: str, dtype: Any, quantization: Any) -> None:
    loaded = load(tmp_path, kind, dtype=dtype, quantization=quantization)
    ids = [PROMPT[index * index % 20] for index in range(300)]
    made = runner(loaded, rows=False, record=None)
    expected = read(made, ids)
    made.release()
    made = runner(loaded)
    assert recorded(made), made.facts
    assert "with torch's own FlashAttention" in made.facts[1][2]
    other = made.open(PROMPT)  # in the first slot: the text is then read in the second
    made.forward(other, PROMPT, nothing)
    error = (read(made, ids) - expected).norm(dim=1) / expected.norm(dim=1)
    made.release()
    # In a mixture a rounding error may send a token to another expert.
    assert (error < 0.1).float().mean() > (0.9 if kind == "granitemoe" else 0.999)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_hybrid_is_recorded_or_says_why_not(tmp_path: Path, dtype: Any) -> None:
    loaded = load(tmp_path, "hybrid", dtype=dtype, quantization="none")
    ids = [PROMPT[index * index % 20] for index in range(300)]
    logits = []
    for options in ({"record": None}, {}):
        made = runner(loaded, **options)
        made.forward(made.open(PROMPT), PROMPT, nothing)
        logits.append(read(made, ids))
        print(made.facts)
        assert recorded(made) or made.facts[1][2]
        made.release()
    error = (logits[0] - logits[1]).norm(dim=1) / logits[0].norm(dim=1)
    assert error.max() < (1e-3 if dtype == "float32" else 0.1)


def test_stop_works_between_recorded_chunks(tmp_path: Path) -> None:
    made = runner(load(tmp_path, "granite", dtype="bfloat16", quantization="none"))
    slot = made.open(PROMPT)
    made.forward(slot, PROMPT[:3], nothing)
    seen = []

    def check() -> None:
        seen.append(len(slot.ids))
        if len(seen) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        made.forward(slot, PROMPT * 20, check)
    assert seen == [3, 131, 259]
    assert slot.ids == PROMPT[:3]
    made.release()


def test_int8_is_not_recorded(tmp_path: Path) -> None:
    made = runner(load(tmp_path, "granite", dtype="float16", quantization="int8"))
    assert made.facts[1][1] == "step by step"
    assert len(write(made, made.open(PROMPT), PROMPT, 5)) == 5
    made.release()


@pytest.mark.parametrize("heads", [(32, 8, 64), (32, 8, 128), (16, 4, 96)])
def test_row_attention_works_on_this_gpu(tmp_path: Path, heads: tuple[int, int, int]) -> None:
    config = load(tmp_path, "granite", dtype="float32", quantization="none").model.config
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = heads
    assert rows_problem(config, torch.device("cuda"), torch.bfloat16) == ""


def test_after_a_failed_recording_the_gpu_still_works(tmp_path: Path) -> None:
    loaded = load(tmp_path, "granite", dtype="float32", quantization="none")

    def wait(module: Any, arguments: tuple[torch.Tensor]) -> None:
        arguments[0].sum().item()  # cannot be recorded

    hook = decoder_layers(loaded.model)[1].register_forward_pre_hook(wait)
    made = runner(loaded)
    assert made.facts[1][1] == "step by step"
    assert "cannot be recorded" in made.facts[1][2]
    computed = write(made, made.open(PROMPT), PROMPT, 100)
    made.release()
    hook.remove()
    made = runner(loaded)
    assert recorded(made), made.facts
    assert write(made, made.open(PROMPT), PROMPT, 100) == computed
    made.release()


def test_memory_is_back_after_release(tmp_path: Path) -> None:
    loaded = load(tmp_path, "granite", dtype="bfloat16", quantization="none")
    made = runner(loaded)
    made.release()  # cuBLAS keeps a workspace
    before = torch.cuda.memory_allocated()
    made = runner(loaded)
    write(made, made.open(PROMPT), PROMPT, 5)
    assert torch.cuda.memory_allocated() > before
    made.release()
    assert torch.cuda.memory_allocated() <= before + 1_000_000
