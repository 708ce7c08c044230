"""Which module may import which, who reads the environment, and how long things may get."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "granite_demo"
MODULES = sorted(PACKAGE.rglob("*.py"))

BASE = {"errors", "messages", "status", "types", "sampling_params", "scores"}
MAY_IMPORT = {
    "errors": set[str](),
    "messages": {"errors"},
    "status": {"messages", "sampling_params"},
    "constraint_checks": {"errors"},
    "constraints": {"errors", "constraint_checks", "dialects"},
    "sampling_params": {"errors", "messages", "constraints"},
    "scores": {"errors", "messages", "status", "sampling_params"},
    "types": {"errors", "messages", "status", "sampling_params", "scores"},
    "garbage": set[str](),
    "conversations": BASE,
    "tokentree": BASE,
    "exchange": BASE | {"conversations"},
    "documents": BASE,
    "grounding": BASE,
    "calculator": set[str](),
    "tools": BASE | {"calculator"},
    "bundle": BASE | {"conversations", "tools"},
    "replay": BASE | {"conversations", "bundle", "backends", "registry", "settings"},
    "settings": BASE,
    "shapes": BASE,
    "catalogue": BASE | {"shapes"},
    "registry": BASE | {"shapes", "catalogue"},
    "planning": BASE | {"shapes"},
    "machine": BASE | {"planning"},
    "hub_transfer": BASE,
    "hub": BASE | {"hub_transfer"},
    "sample_converting": BASE,
    "sample": BASE | {"sample_converting"},
    "terminal": BASE,
    "parsing": BASE,
    "dialects": set[str](),
    "toolcalls": BASE,
    "parts": BASE,
    "answers": BASE | {"dialects", "parsing", "parts", "toolcalls"},
    "decoding": BASE,
    "template_inputs": BASE,
    "marks": BASE,
    "origins": BASE | {"marks"},
    "encoding": {"marks"},
    "fim": BASE | {"encoding", "marks"},
    "prompts": BASE | {"decoding", "encoding", "fim", "marks", "origins", "template_inputs"},
    "switches": BASE | {"dialects", "prompts", "template_inputs"},
    "fitting": BASE,
    "provenance": BASE | {"template_inputs"},
    "wide": set[str](),
    "probing": {"wide"},
    "tensor_parallel": BASE | {"garbage", "shapes"},
    "placement": BASE | {"shapes", "planning", "probing", "tensor_parallel"},
    "cards": BASE | {"shapes"},
    "quantized": BASE | {"catalogue"},
    "llama": BASE,
    "gguf_files": BASE
    | {"llama", "shapes", "catalogue", "placement", "planning", "loading", "cards", "switches", "hub", "hub_transfer"},
    "loading": BASE
    | {"quantized", "shapes", "registry", "placement", "planning", "cards", "tensor_parallel", "switches"},
    "engine": BASE
    | {"constraints", "registry", "planning", "placement", "loading", "engine", "wide", "tensor_parallel", "llama"}
    | {"garbage"},
    "manager": BASE | {"garbage", "loading", "engine", "fim"},
    "choosing": BASE | {"catalogue", "shapes", "planning", "registry", "hub"},
    "opening": BASE
    | {
        "constraints",
        "gguf_files",
        "registry",
        "sample",
        "hub",
        "placement",
        "probing",
        "choosing",
        "loading",
        "engine",
        "manager",
        "tensor_parallel",
    },
    "scoring": BASE | {"prompts", "decoding", "manager", "engine"},
    "comparing": BASE | {"scoring", "decoding", "manager"},
    "backends": BASE
    | {"shapes", "planning", "registry", "prompts", "fitting", "provenance", "streams", "manager", "loading"}
    | {"scoring", "comparing", "constraints", "dialects", "template_inputs"},
    "streams": BASE
    | {"constraints", "answers", "dialects", "parsing", "parts", "template_inputs", "decoding", "manager"},
    "remote": BASE
    | {"constraints", "settings", "answers", "dialects", "parts", "toolcalls", "template_inputs", "fitting"}
    | {"streams", "remote"},
    "beside": BASE | {"backends"},
    "deadline": BASE,
    "limits": BASE | {"backends", "deadline"},
    "access": BASE,
    "serving": BASE
    | {
        "access",
        "backends",
        "beside",
        "engine",
        "hub",
        "limits",
        "opening",
        "remote",
        "server",
        "settings",
        "tensor_parallel",
        "terminal",
    },
    "commands": BASE | {"settings", "shapes", "registry", "planning", "machine", "hub", "sample", "terminal"},
    "flags": BASE | {"settings", "constraints"},
    "printing": BASE | {"backends", "switches", "ui"},
    "session": BASE | {"conversations", "exchange", "bundle", "backends", "printing"},
    "completing": BASE | {"settings", "flags", "bundle", "backends", "printing", "ui"},
    "scoring_command": BASE | {"settings", "flags", "backends", "completing", "printing"},
    "comparison_csv": BASE,
    "comparing_command": BASE
    | {"settings", "flags", "backends", "commands", "comparison_csv", "completing", "printing", "scoring_command"},
    "doctor": BASE | {"backends"},
    "doctor_command": BASE | {"settings", "flags", "backends", "printing", "remote", "doctor", "scoring_command"},
    "chatting": BASE | {"settings", "flags", "conversations", "backends", "printing", "session"},
    "ui": BASE
    | {"settings", "backends", "conversations", "exchange", "documents", "grounding", "tools", "bundle", "switches"}
    | {"tokentree", "constraints", "comparison_csv", "access", "limits", "ui"},
    "bench": BASE
    | {"shapes", "planning", "placement", "loading", "prompts", "engine", "manager", "backends", "server", "bench"}
    | {"conversations", "garbage", "llama", "tensor_parallel"},
    "api": BASE | {"constraint_checks", "constraints", "documents", "tools", "toolcalls", "backends", "limits", "api"},
    "server": BASE | {"access", "garbage", "limits", "api", "settings", "backends", "ui", "server"},
}
MAY_IMPORT_ALL = {"cli", "__main__", "__init__"}
# cli hands the environment to Settings, sample passes it on to pip, and tensor_parallel sets what NCCL reads.
MAY_READ_ENVIRONMENT = {"settings", "cli", "sample", "serving", "tensor_parallel"}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60

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
    if name_of(path) not in MAY_IMPORT_ALL:
        assert name_of(path) in MAY_IMPORT, "give this module a row in MAY_IMPORT"
        assert set(imports_of(ast.parse(path.read_bytes()))) <= MAY_IMPORT[name_of(path)]


@every_module
def test_environment_is_read_in_one_place(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_bytes())))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {node.name for node in nodes if isinstance(node, ast.alias)}
    if name_of(path) not in MAY_READ_ENVIRONMENT:
        assert not used & {"environ", "environb", "getenv"}


@every_module
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("granite_demo", ("gradio", "torch", "transformers")),
        ("granite_demo.cli", ("gradio", "torch", "transformers", "openai")),
        ("granite_demo.ui.blocks, granite_demo.server.app", ("torch",)),
    ],
)
def test_import_is_light(modules: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {modules}\nprint([name for name in {absent} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]", run.stderr
