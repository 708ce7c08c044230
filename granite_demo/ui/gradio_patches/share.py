"""A public link to the page on this machine, through Gradio's tunnel."""

import secrets
from pathlib import Path

from granite_demo.errors import ConfigurationError


def share_link(port: int, folder: Path) -> str:
    """Open a tunnel to ``port`` of this machine and return its address. ``folder`` must be writable.

    Raises ConfigurationError if there is no tunnel, for example without a network.
    """
    from gradio import networking

    folder.mkdir(parents=True, exist_ok=True)
    # Gradio 6.31 writes it below the working directory, which may be read-only.
    setattr(networking, "CERTIFICATE_PATH", str(folder / "share-certificate.pem"))  # noqa: B010
    try:
        return networking.setup_tunnel("127.0.0.1", port, secrets.token_urlsafe(32), None, None)
    except Exception as error:
        raise ConfigurationError(
            f"No link could be made: {error} Check the network, or start without --share. "
            "This machine's own address works without it."
        ) from error
