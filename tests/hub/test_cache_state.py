"""What a cache has of a model, offline: each state is one sentence with what would work."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from granite_demo.hub.cache_state import cache_state

COMMIT = "c0ffee" + "0" * 34
NAME = "ibm-granite/tiny"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A complete copy."""
    folder = tmp_path / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs" / "main").write_text(COMMIT)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return tmp_path


def snapshot(repo: Path) -> Path:
    return repo / "snapshots" / COMMIT


def sharded(repo: Path, *there: str) -> None:
    (snapshot(repo) / "model.safetensors").unlink()
    weights = {f"t{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    (snapshot(repo) / INDEX).write_text(json.dumps({"weight_map": weights}))
    for name in there:
        (snapshot(repo) / name).write_text("")


def lost_blob(repo: Path) -> None:
    path = snapshot(repo) / "tokenizer.json"
    path.unlink()
    path.symlink_to(repo / "blobs" / "gone")


def pickled(repo: Path) -> None:
    (snapshot(repo) / "model.safetensors").rename(snapshot(repo) / "pytorch_model.bin")


def without_index(repo: Path) -> None:
    sharded(repo, "model-00001-of-00002.safetensors")
    (snapshot(repo) / INDEX).unlink()


def test_nothing_and_everything_need_no_sentence(repo: Path, tmp_path: Path) -> None:
    assert cache_state(repo, NAME, None) == ""
    assert cache_state(repo, NAME, COMMIT) == ""
    assert cache_state(tmp_path / "none", NAME, None) == ""


@pytest.mark.parametrize(
    ("damage", "revision", "expected"),
    [
        (lambda repo: (snapshot(repo) / "config.json").unlink(), None, "lacks config.json. Copy"),
        (
            lambda repo: sharded(repo, "model-00001-of-00002.safetensors"),
            None,
            "lacks model-00002-of-00002.safetensors",
        ),
        (without_index, None, f"lacks {INDEX}"),
        (lost_blob, None, "lacks tokenizer.json"),
        (pickled, None, "only as pickle files"),
        (lambda repo: (repo / "refs" / "main").unlink(), None, f"refs/main is missing). Use --revision {COMMIT}."),
        (lambda repo: None, "v2", "has other revisions of ibm-granite/tiny: main. Use --revision main."),
        (lambda repo: None, "c0ffee", f"Use the whole one: --revision {COMMIT}."),
    ],
)
def test_the_state_is_one_sentence(
    repo: Path, damage: Callable[[Path], None], revision: str | None, expected: str
) -> None:
    damage(repo)
    assert expected in cache_state(repo, NAME, revision)
