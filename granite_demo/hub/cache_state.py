"""What the cache of huggingface_hub has of a model, and what it lacks, in one sentence. Uses no network."""

import json
from pathlib import Path

LISTED = 3
"""Names in a sentence, at most."""


def cache_state(repo: Path, name: str, revision: str | None) -> str:
    """Return what ``repo``, a folder ``models--OWNER--NAME`` in the cache, has of the model ``name``.

    The sentence names the revision that would work, or the files that are missing. Empty: nothing is there, or all is.
    """
    snapshots = sorted(path.name for path in (repo / "snapshots").glob("*") if path.is_dir())
    if not snapshots:
        return ""
    wanted = revision or "main"
    reference = repo / "refs" / wanted
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else wanted
    if commit in snapshots:
        return _what_lacks(repo / "snapshots" / commit, name)
    if longer := [snapshot for snapshot in snapshots if snapshot.startswith(wanted)]:
        return f"{wanted} is the start of a commit in the cache. Use the whole one: --revision {longer[0]}."
    branches = sorted(path.name for path in (repo / "refs").glob("*") if path.is_file())
    usable = [branch for branch in branches if branch != wanted] or snapshots
    there = _listed(usable)
    if revision is None and not reference.is_file():
        return f"The cache has {name} without its main branch (refs/main is missing). Use --revision {snapshots[-1]}."
    return f"The cache has other revisions of {name}: {there}. Use --revision {usable[0]}."


def _what_lacks(folder: Path, name: str) -> str:
    lost = sorted(path.name for path in folder.iterdir() if path.is_symlink() and not path.exists())
    index = folder / "model.safetensors.index.json"
    needed = {"config.json", "tokenizer.json"}
    if index.is_file():
        try:
            needed |= {str(file) for file in json.loads(index.read_bytes())["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError):
            lost.append(index.name)
    elif not (folder / "model.safetensors").exists():
        if any(folder.glob("*.bin")):
            return (
                f"The cache has {name} only as pickle files (.bin), which are never loaded. Get the safetensors files."
            )
        shards = any(folder.glob("*-of-*.safetensors"))
        needed.add(index.name if shards else "model.safetensors")
    lacks = sorted({*lost, *(file for file in needed if not (folder / file).exists())})
    return f"The cache has a part of {name}, but lacks {_listed(lacks)}. Copy what is missing." if lacks else ""


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
