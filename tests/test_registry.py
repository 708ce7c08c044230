"""A name is a row of the registry or a folder with a checkpoint."""

from pathlib import Path

import pytest

from granite_demo import registry
from granite_demo.errors import UnknownModelError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "granite-4.0-micro"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_the_sample_is_a_row_and_says_what_it_is() -> None:
    spec = registry.resolve("sample")
    assert spec is registry.SAMPLE
    assert spec.path is None
    assert "SmolLM2" in spec.about
    assert "not one of IBM's models" in spec.about
    assert all(name == row.name for name, row in registry.MODELS.items())


def test_a_folder_is_named_by_its_path(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = registry.resolve(str(checkpoint))
    assert (spec.name, spec.title, spec.path) == ("granite-4.0-micro", "granite-4.0-micro", checkpoint)
    monkeypatch.chdir(checkpoint.parent)
    assert registry.resolve("granite-4.0-micro") == spec
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert registry.resolve("~/granite-4.0-micro") == spec


def test_a_row_wins_over_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert registry.resolve("sample") is registry.SAMPLE


@pytest.mark.xfail(strict=True, reason="the name is taken from the path before it is resolved")
def test_the_folder_one_is_in_has_its_own_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint)
    assert registry.resolve(".").title == "granite-4.0-micro"


def test_an_unknown_name_is_told_with_what_there_is(tmp_path: Path) -> None:
    for name in ("granite-9", str(tmp_path)):
        with pytest.raises(UnknownModelError) as caught:
            registry.resolve(name)
        assert repr(name) in caught.value.user_text
        assert "registry (sample)" in caught.value.user_text
        assert "config.json" in caught.value.user_text


@pytest.mark.xfail(strict=True, reason="OSError and RuntimeError are not caught")
@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/model"], ids=["too long", "no such home"])
def test_names_that_cannot_be_paths_are_unknown(name: str) -> None:
    with pytest.raises(UnknownModelError):
        registry.resolve(name)
