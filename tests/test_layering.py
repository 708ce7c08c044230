"""Which module may import which, who reads the environment, and how long functions may get."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "granite_demo"
MODULES = sorted(PACKAGE.rglob("*.py"))

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "__init__"),
    ("types", "access"),
    ("backend", "settings", "models", "outputs", "chat"),
    ("hub", "prompts"),
    ("ui", "loading"),
    ("server", "engine"),
    ("backends",),
    ("bench",),
    ("cli",),
    ("__main__",),
)
"""The wings by floor. A wing imports itself and lower floors only, so there is no circle."""
BESIDE_THE_ENGINE = {"errors", "types", "access", "backend", "settings", "outputs", "chat", "prompts"}
"""All that the page and the API know: nothing that loads or computes."""
# sample passes the environment on to pip, and tensor_parallel sets what NCCL reads.
MAY_READ_ENVIRONMENT = {"settings.py", "hub/sample.py", "loading/tensor_parallel.py"}
MAX_FUNCTION_LINES = 60
TESTS = PACKAGE.parent / "tests"
PATCHES = "gradio_patches"
INTERNAL_MODULES = {"blocks", "processing_utils", "queueing", "route_utils", "routes", "state_holder", "utils"}
"""Those of Gradio that ``gr`` has and its documentation has not."""
INTERNAL_ATTRIBUTES = {"has_launched", "upload_file_set", "state_holder", "default_config", "get_blocks"}
"""Those of Gradio's pages that its documentation does not have."""

every_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(tree: ast.AST) -> Iterator[str]:
    """The parts of this package that are imported, inside functions too."""
    parts = {name_of(path) for path in MODULES}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full_names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            full_names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for package, part, *_ in (f"{name}.".split(".") for name in full_names):
            if package == PACKAGE.name and part in parts:
                yield part


@every_module
def test_imports_point_downwards(path: Path) -> None:
    wing = name_of(path)
    below = list(takewhile(lambda floor: wing not in floor, FLOORS))
    assert len(below) < len(FLOORS), "give this wing a place on a floor"
    allowed = {wing}.union(*below)
    assert set(imports_of(ast.parse(path.read_bytes()))) <= allowed


@every_module
def test_page_and_api_stand_beside_the_engine(path: Path) -> None:
    if name_of(path) in ("ui", "server") and path.name != "run.py":
        own = {name_of(path), *(["ui"] if name_of(path) == "server" else [])}
        assert set(imports_of(ast.parse(path.read_bytes()))) <= BESIDE_THE_ENGINE | own


@every_module
def test_environment_is_read_in_one_place(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_bytes())))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {node.name for node in nodes if isinstance(node, ast.alias)}
    if path.relative_to(PACKAGE).as_posix() not in MAY_READ_ENVIRONMENT:
        assert not used & {"environ", "environb", "getenv"}


@every_module
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES, node.name


OUTSIDE = [path for folder in (PACKAGE, TESTS) for path in sorted(folder.rglob("*.py")) if PATCHES not in path.parts]


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path.relative_to(PACKAGE.parent).as_posix())
def test_gradios_private_parts_are_used_in_one_folder(path: Path) -> None:
    used = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names if alias.name.startswith("gradio.")}
        elif isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("gradio."):
            used.add(str(node.module))
        elif isinstance(node, ast.Constant) and re.match(rf"gradio\.({'|'.join(INTERNAL_MODULES)})\b", str(node.value)):
            used.add(str(node.value))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            of_module = node.value.id == "gr" and node.attr in INTERNAL_MODULES
            of_page = node.value.id in ("gr", "demo", "page", "blocks") and node.attr.startswith("_")
            used |= {f"{node.value.id}.{node.attr}"} if of_module or of_page else set()
        if isinstance(node, ast.Attribute) and node.attr in INTERNAL_ATTRIBUTES and path in MODULES:
            used.add(node.attr)
    assert not used, f"this belongs in granite_demo/ui/{PATCHES}, with a contract test"


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("granite_demo", ("gradio", "torch", "transformers")),
        ("granite_demo.cli.main", ("gradio", "torch", "transformers", "openai", "jsonschema", "pydantic")),
        ("granite_demo.ui.app, granite_demo.server.app", ("torch",)),
    ],
)
def test_import_is_light(modules: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {modules}\nprint([name for name in {absent} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]", run.stderr


def test_a_class_or_constant_of_one_name_has_one_meaning() -> None:
    """Private names, loggers and type variables, which have one letter, belong to their modules."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
            else:
                continue
            for name in names:
                places.setdefault(name, []).append(path.relative_to(PACKAGE).as_posix())
    own = {"log", *(name for name in places if name.startswith("_") or len(name) == 1)}
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in own} == {}
