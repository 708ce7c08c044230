"""What a user installs and types: README's commands, the declared dependencies, the wheel."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from shutil import copy, copytree

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "granite_demo"
# Python compiles what is imported, at the first start. pip would compile everything, which takes longer and more space.
RUN_LINE = "python3 -m venv .venv && .venv/bin/pip install --no-compile -r requirements.txt && .venv/bin/python app.py"
SMALL_LINE = RUN_LINE.replace("requirements", "requirements-cpu")
TEST_LINE = "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/python -m pytest -n 3"
OPTIONAL = {"matplotlib", "triton"}
USED_BY_TRANSFORMERS = {"accelerate", "bitsandbytes"}
USED_WITH_TORCH = {*USED_BY_TRANSFORMERS, "gguf", "plotly", "safetensors", "torch", "transformers"}
"""The packages that the small installation leaves out: plotly draws comparisons of precisions."""
SHIPPED = (".css", ".js", ".json", ".svg")


@pytest.mark.parametrize("line", [SMALL_LINE, RUN_LINE, TEST_LINE])
def test_readme_has_the_command(line: str) -> None:
    assert line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()


def test_ci_runs_readmes_test_command() -> None:
    steps = [line.strip() for line in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()]
    assert [step for step in steps if step in TEST_LINE.split(" && ")] == TEST_LINE.split(" && ")


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_names(path: Path) -> set[str]:
    """The top-level packages outside the standard library that a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names


def requirements(file: str) -> dict[str, str]:
    """The lines of a requirement file by the names of their packages."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return {normalized(re.split(r"[<>=!~; \[]", line)[0]): line for line in lines if line and line[0] != "#"}


def test_the_small_installation_is_the_whole_one_without_torch() -> None:
    whole = requirements("requirements.txt")
    assert requirements("requirements-cpu.txt") == {name: whole[name] for name in whole if name not in USED_WITH_TORCH}


def test_dependencies_are_those_imported() -> None:
    declared = set(requirements("requirements.txt"))
    provided_by = packages_distributions()
    names = set[str]().union(*map(imported_names, PACKAGE.rglob("*.py"))) - {"granite_demo"}
    used = {normalized(distribution) for name in names for distribution in provided_by.get(name, [name])}
    assert declared == (used - OPTIONAL) | USED_BY_TRANSFORMERS


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = {path.parent.relative_to(ROOT) for path in PACKAGE.rglob("*.py")}
    assert set(listed) == {".".join(folder.parts) for folder in found} | {"granite_demo.assets"}


@pytest.mark.slow
def test_wheel_holds_modules_and_assets(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in ("granite_demo", "assets"):
        copytree(ROOT / folder, source / folder)
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        copy(ROOT / name, source)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, timeout=120)
    [wheel] = tmp_path.glob("granite_demo-*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("granite_demo/")}
    modules = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.suffix in (".py", ".js")}
    assets = {f"granite_demo/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "assets").rglob("*")}
    assert inside == modules | {name for name in assets if name.endswith(SHIPPED)}
