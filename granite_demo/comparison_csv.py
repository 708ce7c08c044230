"""How two precisions differ on a text, as a file for a spreadsheet."""

import csv
import io
import json
from math import isfinite

from granite_demo.scores import Comparison

COLUMNS = ["position", "id", "token", "kl_nats", "agree", "logprob_reference", "logprob_other", "top_reference"]
COLUMNS += ["top_other"]


def to_csv(comparison: Comparison) -> str:
    """Every place as a row. Texts are JSON strings: so none begins a formula, and line breaks can be seen."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for position, token in enumerate(comparison.tokens, 1):
        numbers = [_plain(value) for value in (token.divergence, token.reference, token.other)]
        tops = (json.dumps(token.reference_top), json.dumps(token.other_top))
        writer.writerow((position, token.id, json.dumps(token.text), numbers[0], int(token.agree), *numbers[1:], *tops))
    return file.getvalue()


def _plain(value: float) -> str:
    return f"{value:.9g}" if isfinite(value) else str(value)
