"""Loads a GGUF file: the cache that is planned, and what can go wrong. ``test_llama_process`` has the child."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from granite_demo.errors import CorruptModelError, LoadCancelledError, OutOfMemoryError
from granite_demo.loading import gguf
from granite_demo.loading.device import place_gguf
from granite_demo.loading.gguf import SLOT_RANGE, GgufModel, load_gguf, plan_cache
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.loading.source import Source
from granite_demo.models import registry
from granite_demo.models.gguf_header import GgufHeader, read_header
from granite_demo.models.gguf_memory import cache_bytes_per_token, memory_of
from granite_demo.outputs import structured_output
from granite_demo.types.load_options import KvCache, LoadOptions
from granite_demo.types.model_status import REQUESTED
from tests.bytetokens import byte_tokenizer
from tests.gguf_files import TINY, TINY_HYBRID, granite, write, write_shards
from tests.llama_child import MISSING

needs_llama = pytest.mark.skipif(bool(MISSING), reason=MISSING)
CONTEXT = 32768
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    """Of a tiny model with a long context: 512 bytes of cache for a token, 16 MiB for a conversation."""
    shape = replace(TINY, context=CONTEXT, kv_heads=4)
    return read_header(write(tmp_path_factory.mktemp("plan") / "long.gguf", *granite(shape)))


@pytest.mark.parametrize(
    ("wanted", "free", "context", "tokens", "slots", "reason"),
    [
        (None, 1024, 32768, 32768, 16, "the limit of the file"),
        (None, 64, 32768, 32768, 16, "the limit of the file"),
        (None, 56, 28672, 28672, 16, "what fits into 25% of the free memory"),
        (1000, 1024, 1000, 8192, 16, REQUESTED),
        (1000, 48, 1000, 8192, 16, REQUESTED),
        (CONTEXT + 1, 1024, 32768, 32768, 16, REQUESTED),
    ],
)
def test_the_cache_is_planned(
    header: GgufHeader, wanted: int | None, free: int, context: int, tokens: int, slots: int, reason: str
) -> None:
    assert cache_bytes_per_token(header) == 512
    plan = plan_cache(header, wanted, free * MEBIBYTE)
    assert (plan.context, plan.tokens, plan.slots, plan.reason) == (context, tokens, slots, reason)


@pytest.mark.parametrize("kv_cache", ["f16", "q8_0"])
def test_the_cache_fits_beside_the_model(header: GgufHeader, kv_cache: KvCache) -> None:
    for free in range(40, 90):
        plan = plan_cache(header, None, free * MEBIBYTE, kv_cache)
        assert plan.tokens * cache_bytes_per_token(header, kv_cache) <= free * MEBIBYTE / 4
        assert memory_of(header, plan.tokens, plan.slots, kv_cache).total <= free * MEBIBYTE
        assert plan.context <= plan.tokens


def test_a_cache_in_q8_0_holds_more(header: GgufHeader) -> None:
    kinds: tuple[KvCache, KvCache] = ("f16", "q8_0")
    usual, smaller = [plan_cache(header, None, 40 * MEBIBYTE, kind).context for kind in kinds]
    assert smaller > 1.3 * usual


def test_a_hybrid_has_as_many_slots_as_its_states_leave_room_for(tmp_path: Path) -> None:
    shape = replace(TINY_HYBRID, context=CONTEXT, width=256, feed_forward=512, ssm_state=128, ssm_heads=16)
    header = read_header(write(tmp_path / "hybrid.gguf", *granite(shape)))
    state = memory_of(header, 256, 2).states - memory_of(header, 256, 1).states
    assert state > MEBIBYTE / 2
    plenty = plan_cache(header, 1000, 1024 * MEBIBYTE)
    free = memory_of(header, plenty.tokens, plenty.slots - 3).total
    tight = plan_cache(header, 1000, free)
    assert (plenty.slots, SLOT_RANGE[0] <= tight.slots < plenty.slots) == (16, True)
    assert memory_of(header, tight.tokens, tight.slots).total <= free


def test_without_memory_for_a_conversation_it_is_refused(header: GgufHeader) -> None:
    with pytest.raises(OutOfMemoryError, match="Choose a smaller model"):
        plan_cache(header, None, memory_of(header, 256, SLOT_RANGE[0]).total - 1)


def load(
    path: Path, folder: Path | None = None, cancelled: threading.Event | None = None, single_user: bool = True
) -> LoadedModel:
    options = LoadOptions(str(path), device="cpu", context=300)
    source = Source(registry.resolve(str(path)), folder or path.parent, gguf=path, gguf_because="a test")
    placement = place_gguf(options, "cpu")
    stop = cancelled or threading.Event()
    return load_gguf(source, placement, lambda *_: None, stop, threads=1, single_user=single_user)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A tiny model."""
    return write(tmp_path / "tiny.gguf", *granite(TINY))


@needs_llama
def test_a_file_is_loaded_with_its_own_tokenizer(file: Path) -> None:
    loaded = load(file)
    model = loaded.model
    assert isinstance(model, GgufModel)
    try:
        header = read_header(file)
        assert model.header == header
        assert loaded.vocabulary == len(header.vocabulary.tokens) == len(loaded.tokenizer)
        assert loaded.eos_ids == header.vocabulary.end_ids
        assert loaded.context_length == loaded.placement.context == 300
        assert loaded.placement.quantization == header.quantization == "F32"
        assert loaded.memory
        assert loaded.memory.kv_cache == 300 * cache_bytes_per_token(header)
        assert (model.process.options.threads, model.process.options.slots) == (1, model.plan.slots)
        another = model.start()
        assert another.tokenize("he") == model.process.tokenize("he") == loaded.tokenizer("he").input_ids
        another.close()
    finally:
        model.process.close()


@needs_llama
@pytest.mark.parametrize("single_user", [True, False])
def test_a_single_user_gets_one_conversation_and_no_constraints(file: Path, single_user: bool) -> None:
    loaded = load(file, single_user=single_user)
    loaded.model.process.close()
    assert (loaded.tokenizer in structured_output._converted) != single_user
    assert (loaded.model.process.options.context == loaded.context_length) == single_user


@needs_llama
def test_shards_are_loaded_by_any_of_their_names(tmp_path: Path) -> None:
    first = write_shards(tmp_path, "tiny", *granite(TINY), 3)
    loaded = load(first.with_name(first.name.replace("-00001-", "-00002-")))
    loaded.model.process.close()
    assert loaded.model.process.options.path == str(first)


@needs_llama
def test_the_tokenizer_of_another_model_beside_it_is_refused(file: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    byte_tokenizer().save_pretrained(other)
    before = children()
    with pytest.raises(CorruptModelError, match=r"tiny\.gguf"):
        load(file, other)
    assert children() == before


@needs_llama
def test_a_file_that_llama_cpp_reads_otherwise_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("granite_demo.loading.llama_process.LlamaProcess.tokenize", lambda self, text: [1, 2])
    before = children()
    with pytest.raises(CorruptModelError, match=r"tiny\.gguf.*llama\.cpp"):
        load(file)
    assert children() == before


@needs_llama
def test_a_cancelled_load_leaves_nothing(file: Path) -> None:
    (cancelled := threading.Event()).set()
    before = children()
    with pytest.raises(LoadCancelledError):
        load(file, cancelled=cancelled)
    assert children() == before


def test_a_damaged_file_never_reaches_llama_cpp(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "LlamaProcess", None)
    shutil.copy(file, cut := file.with_name("cut.gguf"))
    with cut.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    with pytest.raises(CorruptModelError, match=r"cut\.gguf"):
        load(cut)
