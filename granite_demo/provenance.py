"""What made an answer, as far as it is known. Knows a loaded model only by its attributes."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from granite_demo.status import Fact
from granite_demo.template_inputs import template_of
from granite_demo.types import Provenance

CHOICES = ("Device", "Precision", "Quantization", "Attention", "Engine")


def provenance_of(loaded: Any, facts: Sequence[Fact], prompt_ids: Sequence[int], raw: bool, tools: bool) -> Provenance:
    """Of an answer of ``loaded``, with the ``facts`` of its status, to ``prompt_ids``.

    A completion of ``raw`` text has no template; that for ``tools`` may be another one.
    """
    template = "" if raw else template_of(loaded.tokenizer, tools)
    return Provenance(
        model=loaded.spec.name,
        revision=loaded.commit or "",
        template_sha256=sha256(template.encode()).hexdigest() if template else "",
        prompt_sha256=sha256(",".join(map(str, prompt_ids)).encode()).hexdigest(),
        choices=tuple((name, value) for name, value, _ in facts if name in CHOICES),
    )
