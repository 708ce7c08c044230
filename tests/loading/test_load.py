"""Choices with their reasons, and loading from a folder."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.utils.logging import set_tqdm_hook

from granite_demo.errors import (
    ConfigurationError,
    CorruptModelError,
    InvalidRequestError,
    LoadCancelledError,
    OutOfMemoryError,
)
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.loading.source import Source
from granite_demo.models import catalogue, registry
from granite_demo.outputs.structured_output import prepare
from granite_demo.types.load_options import LoadOptions, LoadStage, Report
from tests.loaded import load_checkpoint, placed
from tests.tinymodels import KINDS, write_checkpoint

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@no_gpu
def test_every_automatic_choice_has_a_reason() -> None:
    facts = placed(LoadOptions()).facts
    names = [name for name, _, _ in facts if name != "Prompts"]
    assert names == ["Device", "Precision", "Quantization", "Attention"]
    assert all(value and reason for _, value, reason in facts)
    assert facts[0][1] == "cpu"
    assert "measured here" in facts[1][2]


def test_what_is_asked_for_is_taken() -> None:
    placement = placed(LoadOptions(device="cpu", dtype="bfloat16"))
    assert (placement.device, placement.dtype) == ("cpu", torch.bfloat16)
    assert placement.reasons["device"] == placement.reasons["dtype"] == "requested"


@no_gpu
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cuda was requested, but torch finds only: cpu"):
        placed(LoadOptions(device="cuda"))


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Granite."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "granite", "granite")


@pytest.fixture
def copy(tiny_path: Path, tmp_path: Path) -> Path:
    """A copy of it, to break."""
    return shutil.copytree(tiny_path, tmp_path / "copy")


@pytest.fixture
def tqdm_hook() -> Iterator[Any]:
    """A hook of somebody else's, set in transformers for the length of a test."""

    def hook(factory: Any, arguments: Any, options: Any) -> Any:
        return factory(*arguments, **options)

    previous = set_tqdm_hook(hook)
    yield hook
    set_tqdm_hook(previous)


def load(
    folder: Path,
    spec: catalogue.ModelSpec | None = None,
    report: Report = lambda stage, fraction, detail: None,
    cancelled: threading.Event | None = None,
    **options: Any,
) -> LoadedModel:
    wanted = LoadOptions(**{"device": "cpu", "dtype": "float32", **options})
    return load_checkpoint(folder, wanted, spec, report=report, cancelled=cancelled)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_the_sample_is_a_granite_with_end_tokens_and_a_context(sample: LoadedModel) -> None:
    assert type(sample.model).__name__ == "GraniteForCausalLM"
    assert sample.context_length == 8192
    assert sample.tokenizer.eos_token_id in sample.eos_ids
    assert sample.model.dtype == torch.float32


@pytest.mark.parametrize("broken", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_broken_file_is_a_clear_error(sample_path: Path, tmp_path: Path, broken: str) -> None:
    for file in sample_path.iterdir():
        if file.name != broken:
            (tmp_path / file.name).symlink_to(file)
    whole = (sample_path / broken).read_bytes()
    (tmp_path / broken).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptModelError, match=rf"{broken} .*again"):
        load_checkpoint(tmp_path, spec=catalogue.SAMPLE)


def test_pickled_weights_are_not_loaded(sample_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(sample_path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    canary = tmp_path / "canary"
    torch.save({"evil": _Touch(str(canary))}, folder / "pytorch_model.bin")
    with pytest.raises(CorruptModelError):
        load_checkpoint(folder, spec=catalogue.SAMPLE)
    assert not canary.exists()


class _Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


# Progress and cancel


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_progress_rises_to_the_end(tiny_path: Path, quantization: str) -> None:
    reports: list[tuple[LoadStage, float | None, str]] = []
    load(tiny_path, report=lambda *report: reports.append(report), quantization=quantization)
    fractions = [fraction or 0 for _, fraction, _ in reports]
    tensors = len(load_file(tiny_path / "model.safetensors"))
    assert len(reports) == tensors
    assert {stage for stage, _, _ in reports} == {"loading"}
    assert fractions == sorted(set(fractions))
    assert 0 < fractions[0] < fractions[-1] == 1
    assert reports[0][2] == f"weights 1 of {tensors}"


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_load_is_cancelled_between_two_weights(tiny_path: Path, quantization: str) -> None:
    cancelled = threading.Event()
    reports: list[str] = []

    def report(stage: LoadStage, fraction: float | None, detail: str) -> None:
        reports.append(detail)
        if len(reports) == 3:
            cancelled.set()

    with pytest.raises(LoadCancelledError, match="The load was cancelled"):
        load(tiny_path, report=report, cancelled=cancelled, quantization=quantization)
    assert len(reports) == 3


def test_the_hook_of_transformers_is_left_as_it_was(tiny_path: Path, copy: Path, tqdm_hook: Any) -> None:
    load(tiny_path)
    assert set_tqdm_hook(tqdm_hook) is tqdm_hook
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(LoadCancelledError):
        load(tiny_path, cancelled=cancelled)
    assert set_tqdm_hook(tqdm_hook) is tqdm_hook
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(CorruptModelError):
        load(copy)
    assert set_tqdm_hook(tqdm_hook) is tqdm_hook


# Failure


def fill_the_cpu() -> None:
    torch.empty(2**50)


def fill_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def fill_python() -> None:
    raise MemoryError


@pytest.mark.parametrize("fill", [fill_the_cpu, fill_a_gpu, fill_python])
def test_out_of_memory_between_weights_says_what_to_do(tiny_path: Path, fill: Any) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        load(tiny_path, report=lambda *_: fill())
    assert str(caught.value).startswith("granite does not fit into the memory of cpu.")
    assert "Choose a smaller model or precision" in str(caught.value)
    # The frames of the failed load would hold the weights.
    assert caught.value.__cause__
    assert caught.value.__cause__.__traceback__ is None


def test_a_model_too_large_to_try_is_refused_before_its_weights_are_read(copy: Path) -> None:
    edit_config(copy, num_hidden_layers=10**9)
    with pytest.raises(OutOfMemoryError, match="Choose a smaller model"):
        load(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"not JSON", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_not_json_is_corrupt(copy: Path, content: bytes) -> None:
    (copy / "config.json").write_bytes(content)
    with pytest.raises(CorruptModelError, match=r"config.json (cannot be read: .*Get the file again|is not text)"):
        load(copy, spec=catalogue.SAMPLE)


@pytest.mark.parametrize("content", ["[]", "null", "3", '"granite"'])
def test_a_config_that_is_no_object_is_corrupt(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    with pytest.raises(CorruptModelError, match=r"config.json does not hold an object. Get the file again"):
        load(copy, spec=catalogue.SAMPLE)


def test_a_missing_config_is_corrupt(tmp_path: Path) -> None:
    with pytest.raises(CorruptModelError, match=r"config.json cannot be read"):
        load(tmp_path, spec=catalogue.SAMPLE)


@pytest.mark.parametrize(
    "changes",
    [{"model_type": "no such type"}, {"hidden_size": 32}, {"num_attention_heads": 0}, {"vocab_size": "many"}],
    ids=str,
)
def test_a_config_that_does_not_suit_the_weights_is_corrupt(copy: Path, changes: dict[str, Any]) -> None:
    edit_config(copy, **changes)
    with pytest.raises(CorruptModelError, match=r"does not know models of type|shape|invalid"):
        load(copy)


def test_weights_that_are_missing_are_not_made_up(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptModelError, match=r"lacks 1 weights, such as model.layers.1.mlp.up_proj.weight"):
        load(copy)


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_layer_that_the_config_does_not_have_is_not_dropped(copy: Path) -> None:
    edit_config(copy, num_hidden_layers=2)
    with pytest.raises(CorruptModelError, match=r"has 9 tensors that the model .* such as model.layers.2"):
        load(copy)


def test_a_tensor_of_another_size_is_named_with_both_sizes(copy: Path) -> None:
    edit_config(copy, num_key_value_heads=4)
    with pytest.raises(CorruptModelError, match=r"layers.0.self_attn.k_proj.weight with the shape 32 x 64, .* 64 x 64"):
        load(copy)


def test_a_duplicate_head_of_a_tied_model_is_no_other_model(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tied", "granite", tie_word_embeddings=True)
    edit_weights(
        folder, lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    )
    assert load(folder).differences == ()


def test_a_type_that_transformers_does_not_know_is_one_sentence(copy: Path) -> None:
    edit_config(copy, model_type="granite5", architectures=["Granite5ForCausalLM"])
    with pytest.raises(CorruptModelError, match=r"does not know models of type 'granite5'. Use a newer release"):
        load(copy)


def test_a_type_that_continues_no_text_is_one_sentence(copy: Path) -> None:
    edit_config(copy, model_type="vit")
    with pytest.raises(CorruptModelError, match=r"'vit' do not continue text"):
        load(copy)


def test_a_long_reason_of_another_library_is_cut(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **named: Any) -> Any:
        raise ValueError("class " * 500)

    monkeypatch.setattr("granite_demo.loading.load.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(CorruptModelError, match=r"cl…$"):
        load(copy)


def test_a_model_without_an_end_token_loads_and_refuses_constraints(copy: Path) -> None:
    (copy / "tokenizer_config.json").unlink()
    (copy / "generation_config.json").unlink()
    edit_config(copy, eos_token_id=None)
    loaded = load(copy)
    assert loaded.eos_ids == frozenset()
    with pytest.raises(InvalidRequestError, match="no token that ends an answer"):
        prepare(loaded.tokenizer, loaded.eos_ids)


def test_a_token_that_the_embedding_does_not_have_is_refused(copy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(copy)
    loaded = load(copy)
    assert "The tokenizer has 65 tokens, but the model has 64." in loaded.differences[0]
    loaded.check_ids([0, 63])
    with pytest.raises(InvalidRequestError, match="The token 64 is not in the model"):
        loaded.check_ids([1, 64])


@pytest.mark.parametrize("content", ["{% for c in m.content %}{{ c.text }}{% endfor %}", ""], ids=["parts", "nothing"])
def test_a_template_that_loses_the_question_is_not_used(copy: Path, content: str) -> None:
    template = f"{{% for m in messages %}}<{{{{ m.role }}}}>{content}{{% endfor %}}"
    (copy / "chat_template.jinja").write_text(template)
    loaded = load(copy)
    assert loaded.tokenizer.chat_template is None
    assert "leaves out the question" in loaded.differences[0]


def test_fp8_is_unpacked_on_a_cpu_with_its_scales(copy: Path) -> None:
    exact = load(copy, dtype="bfloat16").model.state_dict()

    def quantize(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if name.endswith("proj.weight")]:
            scale = weights[name].float().abs().max() / 448
            weights[name] = (weights[name].float() / scale).to(torch.float8_e4m3fn)
            weights[name.replace("weight", "weight_scale_inv")] = scale.reshape(1, 1)

    edit_weights(copy, quantize)
    edit_config(copy, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    loaded = load(copy, dtype="auto")
    assert "the checkpoint is in FP8" in loaded.placement.reasons["quantization"]
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(loaded.model.state_dict()[name].float(), exact[name].float(), atol=0.05)


# Facts


def test_the_commit_is_a_fact(tiny_path: Path) -> None:
    spec = replace(registry.resolve(str(tiny_path)), repo_id="ibm-granite/tiny")
    loaded = load(tiny_path)
    loaded = replace(loaded, source=Source(spec, tiny_path, commit="0123456789abcdef"))
    assert ("Commit", "0123456789abcdef", "ibm-granite/tiny") in loaded.facts
    assert "Commit" not in [name for name, _, _ in load(tiny_path).facts]


def test_a_wrong_field_of_the_catalogue_is_a_fact(tiny_path: Path) -> None:
    spec = registry.resolve(str(tiny_path))
    assert spec.shape
    assert load(tiny_path).differences == ()
    loaded = load(tiny_path, spec=replace(spec, shape=replace(spec.shape, layers=4, kv_heads=4)))
    assert [fact for fact in loaded.facts if fact[0] == "Note"] == [
        ("Note", "differs", "The number of layers is 4 in the catalogue, 3 in config.json."),
        ("Note", "differs", "The number of key/value heads is 4 in the catalogue, 2 in config.json."),
    ]
    assert loaded.card == load(tiny_path).card  # the card is that of config.json
    assert loaded.card[0][:2] == ("Layers", "3")


def test_every_fact_has_a_value_and_a_reason(tiny_path: Path) -> None:
    facts = load(tiny_path, context=100).facts
    names = ["Model", "Device", "Precision", "Quantization", "Attention", "Context", "Weights", "Sampling"]
    assert [name for name, _, _ in facts] == names
    assert all(value and reason for _, value, reason in facts)
    assert ("Context", "100 tokens", "requested") in facts


def test_a_context_beyond_the_checkpoint_says_so(tiny_path: Path) -> None:
    loaded = load(tiny_path, context=4096)
    assert loaded.context_length == 512
    assert ("Context", "512 tokens", "the checkpoint's own limit; 4,096 were requested") in loaded.facts


@pytest.mark.parametrize(("ends", "expected"), [(5, {0, 5}), ([5, 6], {0, 5, 6}), (None, {0})])
def test_the_end_tokens_are_those_of_both_files(copy: Path, ends: Any, expected: set[int]) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert load(copy).eos_ids == expected


def test_a_panic_of_the_tokenizer_is_an_error_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3 makes it."""

    def panic(*given: Any, **named: Any) -> Any:
        raise PanicException("Onig: Regex search error: retry-limit-in-match over")

    folder = write_checkpoint(tmp_path / "granite", "granite")
    monkeypatch.setattr("granite_demo.loading.load.AutoTokenizer.from_pretrained", panic)
    with pytest.raises(CorruptModelError, match=r"cannot be loaded: Onig"):
        load_checkpoint(folder)


def test_an_architecture_with_attention_sinks_gets_eager_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "sinks", {"model_type": "granite_swa"})
    loaded = load(write_checkpoint(tmp_path / "swa", "sinks"))
    assert loaded.placement.attention == "eager"
    assert loaded.placement.reasons["attention"] != "requested"
