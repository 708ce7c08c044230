"""The fused sampling kernel against the operations it stands for."""

import pytest
import torch

from granite_demo.engine.sampling.reference import Rows, penalise_and_choose

pytestmark = pytest.mark.gpu

VOCABULARY = 49159
BATCH = 60


def cycle(*values: float) -> torch.Tensor:
    return torch.tensor([values[row % len(values)] for row in range(BATCH)], device="cuda")


def test_the_kernel_chooses_what_the_operations_choose() -> None:
    from granite_demo.engine.sampling.triton import penalise_and_choose as fused

    torch.manual_seed(0)
    rows = Rows(
        temperature=cycle(0.0, 0.7, 1.0, 1.5, 2.0),
        top_k=cycle(0.0, 3.0, 50.0),
        top_p=cycle(1.0, 0.9, 0.5, 0.99),
        min_p=cycle(0.0, 0.05),
        penalty=cycle(1.0, 1.3),
        seed=torch.arange(BATCH, device="cuda") * 7919 + 2**40,
        position=torch.arange(BATCH, device="cuda") % 7,
    )
    seen = torch.rand(BATCH + 1, VOCABULARY, device="cuda") < 0.2
    slot = torch.randperm(BATCH, device="cuda")
    for scale in (0.5, 3.0, 10.0):
        logits = torch.randn(BATCH, VOCABULARY, device="cuda") * scale
        expected = penalise_and_choose(logits.clone(), rows, seen, slot)
        assert torch.equal(fused(logits.clone(), rows, seen, slot), expected)


def test_the_kernel_can_be_captured() -> None:
    from granite_demo.engine.sampling.triton import penalise_and_choose as fused

    rows = Rows(cycle(1.0), cycle(0.0), cycle(0.9), cycle(0.0), cycle(1.0), cycle(1).long(), cycle(0).long())
    seen, slot = torch.zeros(1, VOCABULARY, dtype=torch.bool, device="cuda"), cycle(0).long()
    logits = torch.randn(BATCH, VOCABULARY, device="cuda")
    expected = fused(logits.clone(), rows, seen, slot)
    static = logits.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chosen = fused(static, rows, seen, slot)
    static.copy_(logits)
    graph.replay()
    assert torch.equal(chosen, expected)


def test_a_row_of_nan_gets_a_valid_token() -> None:
    from granite_demo.engine.sampling.triton import penalise_and_choose as fused

    rows = Rows(cycle(1.0, 0.0), cycle(5.0), cycle(0.9), cycle(0.0), cycle(1.2), cycle(1).long(), cycle(0).long())
    seen, slot = torch.zeros(1, VOCABULARY, dtype=torch.bool, device="cuda"), cycle(0).long()
    chosen = fused(torch.full((BATCH, VOCABULARY), torch.nan, device="cuda"), rows, seen, slot)
    assert ((chosen >= 0) & (chosen < VOCABULARY)).all()
