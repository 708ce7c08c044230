"""Whether torch is installed. The small installation (``requirements-cpu.txt``) has none, and runs GGUF files only."""

from importlib.util import find_spec

from granite_demo.errors import ConfigurationError

INSTALL = "pip install -r requirements.txt"
"""Adds torch to the small installation."""


def has_torch() -> bool:
    """Return whether torch and transformers are installed. Does not import them."""
    return all(find_spec(name) for name in ("torch", "transformers"))


def installation() -> str:
    """Return which of the two installations this is."""
    if has_torch():
        return "the full one (requirements.txt)"
    return "the small one without torch (requirements-cpu.txt): it runs GGUF files"


def torch_problem(what: str) -> str:
    """Return that ``what`` needs torch, and how to install it, if it is missing; otherwise "". ``what``: a subject."""
    return "" if has_torch() else f"{what} needs torch and transformers, which are not installed. Run: {INSTALL}"


def require_torch(what: str) -> None:
    """Raise ConfigurationError with the text of ``torch_problem`` if torch is not installed."""
    if problem := torch_problem(what):
        raise ConfigurationError(problem)
