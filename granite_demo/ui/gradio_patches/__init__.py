"""Every use of Gradio's private parts, and every change to its behaviour.

Gradio promises nothing about these parts, so ``requirements.txt`` allows one minor release. To move to the next one,
change ``MINOR`` and the requirement, run ``tests/ui/gradio_patches``, and remove what Gradio then does itself.
"""

MINOR = "6.31"
"""The release of Gradio that the patches were read against."""
