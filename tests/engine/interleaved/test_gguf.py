"""The GGUF engine beside llama-cpp-python's own generation; the rest is in test_contract and test_gguf_runner."""

import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from granite_demo.backends.open_model import open_model
from granite_demo.engine.interleaved.engine import InterleavedEngine
from granite_demo.engine.interleaved.gguf import GgufRunner
from granite_demo.errors import CorruptModelError
from granite_demo.hub.gguf import FASTER
from granite_demo.hub.sample import ensure_gguf
from granite_demo.loading.gguf import load_tokenizer
from granite_demo.loading.llama_cpp import LlamaFile
from granite_demo.loading.load import LoadedModel
from granite_demo.settings import Settings
from granite_demo.types.load_options import LoadOptions
from tests.engine.gguf_writing import MISSING, write_gguf
from tests.engine.running import answer, tiny_model
from tests.fakehub import FakeHub, model_files
from tests.tinymodels import write_checkpoint

TEXT = (
    "The capital of France is Paris. Water boils at one hundred degrees Celsius, and ice melts at zero. In 1969 two "
    "men walked on the moon."
)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


async def test_greedy_tokens_are_those_of_the_package() -> None:
    from llama_cpp import Llama

    path = ensure_gguf(Settings.resolve({}, {}).cache_dir, lambda *_: None, threading.Event())
    prompt = list(range(1000, 1040))
    engine = InterleavedEngine(GgufRunner(LlamaFile(path), 2, 512, 1), frozenset())
    ours = await answer(engine, prompt, max_tokens=100)
    sampled = [await answer(engine, prompt, max_tokens=10, temperature=0.8, top_p=0.9, seed=seed) for seed in (1, 1, 2)]
    engine.close()
    theirs = Llama(str(path), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
    tokens = theirs.generate(prompt, temp=0, top_k=1, repeat_penalty=1.0)
    assert ours == [next(tokens) for _ in range(100)]
    theirs.close()
    assert sampled[0] == sampled[1] != sampled[2]


def test_the_tokenizer_in_a_file_reads_as_llama_cpp_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = ensure_gguf(Settings.resolve({}, {}).cache_dir, lambda *_: None, threading.Event())
    alone = tmp_path / beside.name
    alone.symlink_to(beside)
    file = LlamaFile(alone)
    tokenizer = load_tokenizer(alone, file)
    ids = tokenizer("<|im_start|>user\nCount 123.", add_special_tokens=False)["input_ids"]
    assert ids == file.tokenize("<|im_start|>user\nCount 123.")
    assert ids == load_tokenizer(beside, file)("<|im_start|>user\nCount 123.", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(file, "tokenize", lambda text: [*ids, 1])
    with pytest.raises(CorruptModelError, match=r"splits texts otherwise.*tokenizer\.json"):
        load_tokenizer(alone, file)
    assert load_tokenizer(alone, file, checkpoint=beside.parent) is not None
    file.close()


async def test_a_model_of_the_hub_is_loaded_from_its_gguf_file_and_its_own_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "granite")
    tokenizer = {path.name: path.read_bytes() for path in folder.glob("tokenizer*")}
    file = write_gguf(tiny_model().model, tmp_path / "tiny.gguf").read_bytes()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with FakeHub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        hub.add("ibm-granite/granite-4.0-350m-GGUF", {"granite-4.0-350m-Q4_K_M.gguf": file})
        hub.add("ibm-granite/granite-4.0-350m", {**model_files(), **tokenizer})
        options = LoadOptions(model="granite-4.0-350m", device="cpu")
        ready = open_model(tmp_path, 1, options, lambda stage, fraction, detail: None, threading.Event())
        with closing(ready.engine):
            assert len(await answer(ready.engine, [1, 2, 3], max_tokens=4)) == 4
        again = open_model(tmp_path, 1, options, lambda stage, fraction, detail: None, threading.Event())
        again.engine.close()
        assert len(hub.transfers("granite-4.0-350m-Q4_K_M.gguf")) == 1
        assert not hub.transfers("model.safetensors")
    assert ready.loaded.tokenizer("Hello").input_ids == AutoTokenizer.from_pretrained(folder)("Hello").input_ids
    assert ready.engine.facts[0][1:] == ("gguf, up to 4 requests in turns", FASTER)


@pytest.mark.slow
async def test_log_probabilities_of_the_sample_are_near_those_of_transformers(sample: LoadedModel) -> None:
    """The same weights: the file's, in 4 bits, and what transformers has of them, written out in float32.

    llama.cpp rounds what it multiplies 4-bit weights with to 8 bits, so they are near and not equal. Measured on this
    text: KL divergence 0.0036 nats a token, log probabilities 0.06 apart on average. test_contract has float32 weights
    in a GGUF file, where all are equal to 1e-3.
    """
    path = ensure_gguf(Settings.resolve({}, {}).cache_dir, lambda *_: None, threading.Event())
    ids: list[int] = sample.tokenizer(TEXT).input_ids
    with torch.no_grad():
        theirs = sample.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    with closing(InterleavedEngine(GgufRunner(LlamaFile(path), 2, 512, 1), frozenset())) as engine:
        rows = [rows async for rows in engine.score(ids, _log_softmax) if isinstance(rows, torch.Tensor)]
    ours = torch.cat(rows)
    chosen = torch.tensor(ids[1:])[:, None]
    apart = (ours[:-1].gather(1, chosen) - theirs[:-1].gather(1, chosen)).abs()
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)
    assert ours.argmax(-1).eq(theirs.argmax(-1)).float().mean() >= 0.95
    assert divergence.mean() < 0.01
    assert apart.mean() < 0.15
    assert apart.max() < 1.0


def _log_softmax(start: int, logits: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(-1).clone()


def test_what_another_conversation_has_is_copied(tmp_path: Path) -> None:
    runner = GgufRunner(LlamaFile(write_gguf(tiny_model().model, tmp_path / "tiny.gguf")), 2, 512, 1, exact=True)
    prompt = [5 + index * 7 % 50 for index in range(200)]
    first = runner.open(prompt)
    runner.forward(first, prompt, lambda: None)
    second = runner.open([*prompt[:100], 1, 2])
    assert (second.place != first.place, len(second.ids), len(first.ids)) == (True, 100, 200)
    copied = runner.forward(second, [1, 2], lambda: None).clone()
    runner.close(second)
    runner.discard(second)
    cold = runner.forward(runner.open([9, 9]), [*prompt[:100], 1, 2], lambda: None)
    torch.testing.assert_close(copied, cold, rtol=1e-4, atol=1e-4)
    runner.release()
