"""Which steps are captured, and by which keys. The capture itself needs a GPU."""

import torch

from granite_demo.engine.batching.cuda_graphs import KEY_GRAIN, QUERY_GRAIN, Graphs, usual_steps
from granite_demo.engine.batching.sampler import BatchSampler


class Graph:
    def reset(self) -> None:
        pass


def test_steps_with_log_probabilities_have_their_own_graphs() -> None:
    sampler = BatchSampler(64, 4, torch.device("cpu"))
    graphs = Graphs(sampler)
    plain, reporting = Graph(), Graph()
    graphs.set_graph((1, 0), plain)
    sampler.with_logprobs = True
    assert graphs.get_graph((1, 0)) is None
    graphs.set_graph((1, 0), reporting)
    assert graphs.get_graph((1, 0)) is reporting
    sampler.with_logprobs = False
    assert graphs.get_graph((1, 0)) is plain
    sampler.adjusting = True
    assert graphs.get_graph((1, 0)) is None
    assert len(graphs) == 2


def test_the_largest_step_comes_first_and_none_is_larger_than_a_request() -> None:
    for context in (600, 4096, 8192, 131072):
        steps = usual_steps(2048, 64, context)
        prefills = [(size, cached) for size, cached in steps if cached is not None]
        assert max(size + cached for size, cached in prefills) == sum(prefills[0]) <= max(2048, min(context, KEY_GRAIN))
        assert len(steps) == len(set(steps))
        assert all(size % QUERY_GRAIN == 0 for size, _ in prefills)


def test_a_first_turn_of_any_length_finds_its_graph() -> None:
    for context in (600, 4096, 131072):
        first_turns = [size for size, cached in usual_steps(2048, 64, context) if cached == 0]
        assert set(first_turns) == {512, 1024, 1536, 2048}
        assert first_turns == sorted(first_turns, reverse=True)
    assert {size for size, cached in usual_steps(512, 64, 4096) if cached == 0} == {512}


def test_the_chunks_of_a_long_first_turn_find_their_graphs() -> None:
    # The key has the power of two of all tokens so far.
    chunks = {size + cached for size, cached in usual_steps(2048, 64, 131072) if size == 2048 and cached}
    assert chunks >= {4096, 8192, KEY_GRAIN}


def test_decoding_has_the_powers_of_two_up_to_all_requests() -> None:
    for requests, sizes in ((1, [1]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])):
        assert [size for size, cached in usual_steps(2048, requests, 4096) if cached is None] == sizes
