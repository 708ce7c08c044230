"""The README and the pages of docs: links and files that they name exist, and the README stays short."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / ".github").glob("*.md")))
MAX_README = 150
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def text_of(page: Path) -> str:
    """The page without its code."""
    return CODE.sub("", page.read_text(encoding="utf-8"))


def headings(page: Path) -> set[str]:
    """The anchors of the page, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """The relative links of the page that lead to no file or heading."""
    found = []
    for link in LINK.findall(text_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One title\n[a](#one-title) [b](#two) [c](none.md) [d](page.md#two) [e](https://example.org)\n")
    assert broken_links(page) == ["#two", "none.md", "page.md#two"]


def test_every_page_and_picture_is_linked() -> None:
    links = ((page, link) for page in PAGES for link in LINK.findall(text_of(page)))
    linked = {(page.parent / link.partition("#")[0]).resolve() for page, link in links}
    pictures = {*(ROOT / "assets").glob("*.png"), *(ROOT / "docs/images").iterdir()}
    assert pictures | set((ROOT / "docs").glob("*.md")) <= linked


def tree() -> dict[str, set[str]]:
    """The folders of the README's tree with the names that follow them, after the colon if there is one."""
    [block] = re.findall(
        r"^## Where things are\n\n```\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block.splitlines():
        if entry := re.match(r"( *)(\w+)/ +(.*)", line):
            folders = [*folders[: len(entry[1]) // 2], entry[2]]
            found["/".join(folders)] = entry[3]
        elif line.startswith(" "):
            found["/".join(folders)] += " " + line.strip()
    return {folder: set(text.rpartition(":")[2].split()) for folder, text in found.items()}


def test_the_tree_of_the_readme_is_that_of_the_package() -> None:
    modules = [path for path in (ROOT / "granite_demo").rglob("*.py") if not path.name.startswith("__")]
    package: dict[str, set[str]] = {}
    for path in modules:
        package.setdefault(path.parent.relative_to(ROOT).as_posix(), set()).add(path.stem)
    described = tree()
    assert {folder: described.get(folder) for folder in package} == package


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`(\w+/[\w/]+\.(?:py|json))`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not ((ROOT / name).exists() or (ROOT / "granite_demo" / name).exists())] == []


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MAX_README
