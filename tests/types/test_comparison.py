"""Tests for the CSV file of a comparison."""

import csv
import io
import json
from math import inf

from granite_demo.types.comparison import ComparedSide, ComparedToken, Comparison, to_csv

SIDE = ComparedSide("bfloat16", (), None, 1500.0, None, None)
TOKENS = tuple(
    ComparedToken(index, text, divergence, agree, -0.5, -inf, "=x", "@y")
    for index, (text, divergence, agree) in enumerate([(" b", 0.0, True), ("\n=1+1", 3.0, False), ("-e", inf, False)])
)


def test_the_file_has_all_tokens_and_no_formula() -> None:
    found = list(csv.DictReader(io.StringIO(to_csv(Comparison(TOKENS, SIDE, SIDE)))))
    assert [json.loads(row["token"]) for row in found] == [token.text for token in TOKENS]
    assert [float(row["kl_nats"]) for row in found] == [token.divergence for token in TOKENS]
    assert (found[1]["position"], found[1]["agree"], found[1]["logprob_other"]) == ("2", "0", "-inf")
    texts = [row[name] for row in found for name in ("token", "top_reference", "top_other")]
    assert not [text for text in texts if text.startswith(("=", "+", "-", "@"))]
