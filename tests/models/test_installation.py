"""What an installation without torch says."""

import pytest

from granite_demo.errors import ConfigurationError
from granite_demo.models import installation


@pytest.mark.parametrize("missing", [("torch",), ("transformers",), ("torch", "transformers")])
def test_without_torch_the_error_names_what_needs_it_and_the_command(
    missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "find_spec", lambda name: None if name in missing else name)
    with pytest.raises(
        ConfigurationError, match=r"^The engine static needs torch .*: pip install -r requirements.txt$"
    ):
        installation.require_torch("The engine static")


def test_with_torch_there_is_no_problem() -> None:
    installation.require_torch("The engine static")
    assert installation.torch_problem("The engine static") == ""
