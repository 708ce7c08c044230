"""Gradio's import, without the files for editors that it writes. Imports no Gradio."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

STUB_WRITER = "gradio.component_meta"


def skip_type_stubs() -> None:
    """Let Gradio write no type stubs. Call it before the first import of Gradio.

    At import, Gradio 6.31 parses the source of each component and compares it with a stub in its own folder, which it
    writes if it differs. This takes half of the time of the import.
    """
    if STUB_WRITER not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != STUB_WRITER:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec and spec.origin:
            spec.loader = _Loader(name, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        module.create_or_modify_pyi = lambda *_: None  # type: ignore[attr-defined]
