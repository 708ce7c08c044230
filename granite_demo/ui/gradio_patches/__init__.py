"""Every use of Gradio's private parts. Each module says what Gradio does without it; nothing else in the project reaches in.

Gradio promises nothing about these parts, so ``requirements.txt`` allows one minor release of it. To move to the next
one, change ``MINOR`` and the requirement, run ``tests/ui/gradio_patches``, and remove what Gradio then does itself.
"""

MINOR = "6.31"
"""The release of Gradio that the patches were read against."""
