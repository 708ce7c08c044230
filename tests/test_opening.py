"""Opening a model for a purpose of its own; the usual way is in test_routes."""

import threading
from pathlib import Path

from granite_demo.opening import open_model
from granite_demo.types import LoadOptions, SamplingParams
from tests.tinymodels import write_checkpoint


async def test_no_token_ends_an_answer_that_is_measured(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "granite")
    options = LoadOptions(model=str(folder), device="cpu", dtype="float32")
    ready = open_model(tmp_path, 0, options, lambda stage, fraction, detail: None, threading.Event(), ignore_ends=True)
    assert ready.loaded.eos_ids == frozenset()
    head = ready.loaded.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, logits: logits.new_zeros(logits.shape))
    answer = [token async for token in ready.engine.generate([5, 6, 7], SamplingParams(max_tokens=4))]
    hook.remove()
    # All logits are equal: the choice is token 0, the tokenizer's end.
    assert [getattr(token, "id", None) for token in answer] == [0, 0, 0, 0]
    ready.engine.close()
