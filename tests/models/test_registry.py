"""A name resolves to a row of the catalogue or to a checkpoint folder, and rows are compared with config.json."""

import json
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from granite_demo.errors import CorruptModelError, UnknownModelError
from granite_demo.models import catalogue, registry
from granite_demo.models.config import Shape, count_parameters
from granite_demo.types.sampling_params import SamplingParams
from tests.models.test_config import config_of

GRANITES = [spec for spec in catalogue.MODELS.values() if spec is not catalogue.SAMPLE]
SIZES_40 = ("350m", "h-350m", "1b", "h-1b", "micro", "h-micro", "h-tiny", "h-small")


def shape_of(spec: catalogue.ModelSpec) -> Shape:
    assert spec.shape
    return spec.shape


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "granite-of-mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_the_sample_is_a_row_and_describes_itself() -> None:
    spec = registry.resolve("sample")
    assert spec is catalogue.SAMPLE
    assert spec.path is None
    assert spec.repo_id is None
    assert "SmolLM2" in spec.about
    assert "not one of IBM's models" in spec.about


def test_every_granite_has_a_row() -> None:
    expected = {f"granite-4.0-{size}{end}" for size in SIZES_40 for end in ("", "-base")}
    expected |= {f"granite-4.1-{size}{end}" for size in ("3b", "8b", "30b") for end in ("", "-base")}
    expected |= {f"granite-4.2-{size}" for size in ("3b", "8b", "30b")}
    expected |= {f"granite-{version}-{size}-instruct" for version in ("3.1", "3.2", "3.3") for size in ("2b", "8b")}
    expected |= {f"granite-{version}-{size}-base" for version in ("3.1", "3.3") for size in ("2b", "8b")}
    assert {spec.name for spec in GRANITES} == expected
    assert all(name == row.name for name, row in catalogue.MODELS.items())
    for field in ("title", "repo_id"):
        assert len({getattr(spec, field) for spec in GRANITES}) == len(GRANITES)


@pytest.mark.parametrize("spec", GRANITES, ids=lambda spec: spec.name)
def test_a_row_is_complete(spec: catalogue.ModelSpec) -> None:
    version = spec.name.split("-")[1]
    assert spec.repo_id == f"ibm-granite/{spec.name}"
    assert registry.resolve(spec.repo_id) is spec
    assert spec.family == f"Granite {version}"
    assert spec.title.startswith(spec.family)
    assert spec.instruct != spec.name.endswith("-base")
    assert spec.chat_format == {"4.1": "granite-4.0"}.get(version, f"granite-{version}")
    assert spec.licence == "Apache-2.0"
    assert spec.about.endswith(".")
    assert spec.path is None
    assert spec.context_length == (32768 if "350m" in spec.name else 131072)
    assert spec.unverified <= {field.name for field in fields(Shape)}
    own = SamplingParams(temperature=1.0, top_p=0.95, max_tokens=8192)
    assert spec.sampling == (own if version == "4.2" else SamplingParams())


@pytest.mark.parametrize("spec", GRANITES, ids=lambda spec: spec.name)
def test_the_text_of_a_row_agrees_with_its_shape(spec: catalogue.ModelSpec) -> None:
    shape = shape_of(spec)
    found = re.search(r"([\d.]+) (m|b)illion parameters", spec.about)
    assert found
    stated = float(found[1]) * (10**6 if found[2] == "m" else 10**9)
    assert count_parameters(shape).total == pytest.approx(stated, rel=0.03)
    assert ("Mamba-2" in spec.about) == ("-h-" in spec.name) == (shape.mamba is not None)
    assert ("experts" in spec.about) == (shape.experts > 0) == bool(re.search("tiny|small", spec.name))
    # IBM's multipliers follow muP, and the residual multiplier decreases with depth.
    assert shape.attention_multiplier == 1 / shape.head_dim
    assert shape.logits_scaling == shape.hidden_size / 256
    assert shape.residual_multiplier == pytest.approx(1.3916 / shape.layers**0.5, rel=0.01)
    assert shape.heads * shape.head_dim == shape.hidden_size
    if shape.mamba:
        assert shape.mamba.inner_size == 2 * shape.hidden_size


def test_titles_read_well() -> None:
    titles = [
        catalogue.MODELS[f"granite-{name}"].title for name in ("3.3-2b-instruct", "4.0-h-350m-base", "4.0-h-tiny")
    ]
    assert titles == ["Granite 3.3 2B Instruct", "Granite 4.0 H-350M Base", "Granite 4.0 H-Tiny"]


def test_a_row_names_its_unverified_fields() -> None:
    assert "experts" in catalogue.MODELS["granite-4.0-h-small"].unverified
    assert "residual_multiplier" in catalogue.MODELS["granite-4.2-30b"].unverified
    assert not catalogue.MODELS["granite-4.2-8b"].unverified


def test_the_sample_has_the_shape_of_its_files(sample_path: Path) -> None:
    config = json.loads((sample_path / "config.json").read_bytes())
    assert registry.differences(catalogue.SAMPLE, config) == []
    assert Shape.from_config(config) == shape_of(catalogue.SAMPLE)


def test_a_folder_is_named_by_its_path(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = registry.resolve(str(checkpoint))
    assert (spec.name, spec.title, spec.path) == ("granite-of-mine", "granite-of-mine", checkpoint)
    monkeypatch.chdir(checkpoint.parent)
    assert registry.resolve("granite-of-mine") == spec
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert registry.resolve("~/granite-of-mine") == spec


def test_a_row_takes_precedence_over_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("sample", "granite-4.1-3b", "ibm-granite/granite-4.1-3b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        assert registry.resolve(name).path is None
        assert registry.resolve(f"./{name}").path == tmp_path / name


def test_the_current_folder_has_its_own_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint)
    assert registry.resolve(".").title == "granite-of-mine"


def test_a_folder_has_the_shape_of_its_config(checkpoint: Path) -> None:
    shape = shape_of(catalogue.MODELS["granite-4.0-h-tiny"])
    (checkpoint / "config.json").write_text(json.dumps(config_of(shape)))
    spec = registry.resolve(str(checkpoint))
    assert spec.shape == shape
    assert spec.context_length == 131072


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '{"model_type": "qwen3"}', "[" * 100_000], ids=lambda t: t[:9])
def test_a_folder_with_a_strange_config_has_no_shape(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text, encoding="latin-1")
    spec = registry.resolve(str(checkpoint))
    assert spec.shape is None
    assert spec.context_length is None
    assert registry.differences(spec, {}) == []


def test_the_error_for_an_unknown_name_says_what_to_do() -> None:
    for name in ("gpt-9", "x\0y", "x" * 5000, "~nobody-of-this-name/model"):
        with pytest.raises(UnknownModelError) as caught:
            registry.resolve(name)
        assert repr(name)[:300] in caught.value.user_text
        assert "config.json" in caught.value.user_text
        assert caught.value.user_text.endswith("granite-demo models")


@pytest.mark.parametrize("name", ["granite-3.3-2b-bas", "other/granite-3.3-2b-bas"])
def test_a_misspelt_name_gets_suggestions(name: str) -> None:
    with pytest.raises(UnknownModelError, match=r"Did you mean granite-3.3-2b-base or"):
        registry.resolve(name)


def test_a_row_that_agrees_has_no_differences() -> None:
    for spec in GRANITES:
        assert registry.differences(spec, config_of(shape_of(spec))) == []


def test_differences_are_sentences() -> None:
    spec = catalogue.MODELS["granite-4.0-h-tiny"]
    config = config_of(shape_of(spec)) | {
        "max_position_embeddings": 128000,
        "residual_multiplier": 0.25,
        "logits_scaling": None,
        "num_local_experts": 62,
        "mamba_d_state": 256,
        "num_key_value_heads": 2,
    }
    assert registry.differences(spec, config) == [
        "The context length is 131072 in the catalogue, 128000 in config.json.",
        "The number of key/value heads is 4 in the catalogue, 2 in config.json.",
        "The number of experts is 64 in the catalogue, 62 in config.json.",
        "The shape of the Mamba-2 layers is 48 heads of 64 with a state of 128 in the catalogue, "
        "48 heads of 64 with a state of 256 in config.json.",
        "The residual multiplier is 0.22 in the catalogue, 0.25 in config.json.",
        "The logits scaling is 6 in the catalogue, missing in config.json.",
    ]


def test_fields_without_a_value_are_not_compared() -> None:
    spec = catalogue.MODELS["granite-4.1-30b"]
    config = config_of(shape_of(spec)) | {"residual_multiplier": 0.5}
    assert len(registry.differences(spec, config)) == 1
    open_row = replace(spec, shape=replace(shape_of(spec), residual_multiplier=None))
    assert registry.differences(open_row, config) == []


def test_a_config_that_cannot_be_read_is_a_difference() -> None:
    (only,) = registry.differences(catalogue.SAMPLE, {"model_type": "granite"})
    assert "cannot be compared" in only
    assert "num_hidden_layers" in only


# What people give as a model


@pytest.mark.parametrize(
    "write",
    [
        "{}",
        " {} ",
        "'{}'",
        '"{}"',
        "file://{}",
        "{}/config.json",
        "{}/model.safetensors",
    ],
)
def test_a_path_is_taken_as_people_write_it(checkpoint: Path, write: str) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"")
    assert registry.resolve(write.format(checkpoint)).path == checkpoint


@pytest.mark.parametrize(
    "name",
    [
        "Granite-3.3-2B-Instruct",
        "IBM-Granite/granite-3.3-2b-instruct",
        "ibm-granite/granite-3.3-2b-instruct-GGUF",
        "https://huggingface.co/ibm-granite/granite-3.3-2b-instruct",
        "https://huggingface.co/ibm-granite/granite-3.3-2b-instruct/tree/main",
    ],
)
def test_a_row_is_found_by_what_names_it(name: str) -> None:
    assert registry.resolve(name) is catalogue.MODELS["granite-3.3-2b-instruct"]


def test_another_repository_of_ibm_is_a_model_with_a_revision() -> None:
    spec = registry.resolve("ibm-granite/granite-9-tiny@abc123")
    assert (spec.name, spec.repo_id, spec.revision) == ("ibm-granite/granite-9-tiny",) * 2 + ("abc123",)
    assert registry.resolve("granite-3.3-2b-instruct@main").revision == "main"
    assert registry.resolve("https://huggingface.co/ibm-granite/x-y/tree/v2").revision == "v2"


def hub_copy(folder: Path, *commits: str, main: str = "") -> Path:
    for commit in commits:
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text("{}")
    if main:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(main)
    return folder


def test_a_folder_of_the_hub_cache_stands_for_its_main_version(tmp_path: Path) -> None:
    both = hub_copy(tmp_path / "both", "a" * 40, "b" * 40, main="b" * 40)
    assert registry.resolve(str(both)).path == both / "snapshots" / ("b" * 40)
    only = hub_copy(tmp_path / "only", "a" * 40)
    assert registry.resolve(str(only)).path == only / "snapshots" / ("a" * 40)
    unclear = hub_copy(tmp_path / "unclear", "a" * 40, "b" * 40)
    with pytest.raises(UnknownModelError, match=r"several versions .* Name one: .*/a{40}"):
        registry.resolve(str(unclear))


def parent(folder: Path) -> None:
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "config.json").write_text("{}")


def folder_like_a_file(folder: Path) -> None:
    (folder / "x.gguf").mkdir()


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        (parent, r"holds 1 checkpoints and is none itself. Name one: .*/checkpoint-500"),
        (lambda folder: None, "is empty, so it is no model"),
        (folder_like_a_file, "has neither a config.json nor a GGUF file"),
    ],
)
def test_a_folder_that_is_no_model_is_named(tmp_path: Path, fill: Callable[[Path], None], expected: str) -> None:
    fill(tmp_path)
    with pytest.raises(UnknownModelError, match=expected):
        registry.resolve(str(tmp_path))


def test_other_names_have_their_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="No model is named"):
        registry.resolve(" ")
    with pytest.raises(UnknownModelError, match="There is no file or folder"):
        registry.resolve(str(tmp_path / "missing"))
    with pytest.raises(UnknownModelError, match="hf download unsloth/granite-3.2-2b-instruct --local-dir FOLDER"):
        registry.resolve("unsloth/granite-3.2-2b-instruct")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "ibm-granite/base"}')
    with pytest.raises(CorruptModelError, match=r"an adapter \(LoRA\) of ibm-granite/base"):
        registry.resolve(str(tmp_path))
