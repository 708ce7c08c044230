"""What the test of a contract says when it fails."""

from importlib.metadata import version


def differs(what: str, source: str, patch: str) -> str:
    """``what`` should hold and does not: which file of Gradio to read, and which of ours to change or remove."""
    return (
        f"Gradio {version('gradio')}: not as expected: {what}. "
        f"Read gradio/{source}, then change or remove ui/gradio_patches/{patch}."
    )
