"""Attention to rows of a shared cache: the exact form, compared with torch. tests/gpu has the kernel."""

import pytest
import torch

from granite_demo.engine.interleaved import row_attention
from granite_demo.engine.interleaved.row_attention import attend, rows_problem
from tests.engine.running import tiny_model


@pytest.mark.parametrize(("count", "first", "end"), [(1, 0, 1), (1, 5, 30), (6, 0, 6), (6, 5, 30)])
def test_queries_attend_to_their_rows_and_not_to_later_ones(count: int, first: int, end: int) -> None:
    torch.manual_seed(0)
    query, keys, values = torch.randn(count, 4, 8), torch.randn(40, 2, 8), torch.randn(40, 2, 8)
    lengths = torch.tensor([0, count], dtype=torch.int32), torch.tensor([first, end], dtype=torch.int32)
    ours = attend(query, keys, values, *lengths, count, 40, 0.3)
    for index in range(count):
        seen = slice(first, end - count + 1 + index)
        for head in range(4):
            scores = keys[seen, head // 2] @ query[index, head] * 0.3
            torch.testing.assert_close(ours[index, head], scores.softmax(0) @ values[seen, head // 2])


def test_without_lengths_it_is_sdpa() -> None:
    loaded = tiny_model()
    ids = torch.tensor([[0, 0, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
    expected = loaded.model(ids, attention_mask=mask).logits
    row_attention.register()
    loaded.model.set_attn_implementation(row_attention.ROW_ATTENTION)
    assert torch.equal(loaded.model(ids, attention_mask=mask).logits, expected)


def test_a_cpu_has_a_reason() -> None:
    config = tiny_model().model.config
    assert rows_problem(config, torch.device("cpu"), torch.bfloat16) == "it needs a CUDA GPU"
    assert rows_problem(config, torch.device("cuda"), torch.float32) == "it does not compute in float32"
