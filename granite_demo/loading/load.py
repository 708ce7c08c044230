"""The third stage of opening a model: a source and a placement in, a loaded model out.

Loads safetensors files only and never runs remote code; ``gguf.py`` loads GGUF files. Imports torch.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar, set_tqdm_hook

from granite_demo.errors import CorruptModelError, GraniteDemoError, LoadCancelledError, OutOfMemoryError
from granite_demo.loading import quantized_copies
from granite_demo.loading.device import Placement, free_memory, is_out_of_memory
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.loading.placement import known_shape, precision_of
from granite_demo.loading.source import Source
from granite_demo.models import memory as planning
from granite_demo.models import registry
from granite_demo.models.checkpoint import StoredCheckpoint, check_tensor_names, read_checkpoint
from granite_demo.models.config import Shape
from granite_demo.prompts.template_features import find_switches, unusable_parts
from granite_demo.types.load_options import Report
from granite_demo.types.model_status import MemoryUse

log = logging.getLogger(__name__)

PANIC = "PanicException"
"""The class of an error of tokenizers' Rust code, a BaseException that cannot be imported."""
DEFAULT_CONTEXT = 2048
"""The context of a model whose configuration states none."""
LONGEST_REASON = 200
"""Characters of an error of another library that are shown."""
PANIC_PROBE = "Hello, world! 123\n\tdéjà vu 你好"


def load_model(
    source: Source,
    placement: Placement,
    report: Report = lambda stage, fraction, detail: None,
    cancelled: threading.Event | None = None,
    copies: Path | None = None,
    keep_quantized: bool = False,
) -> LoadedModel:
    """Load the safetensors files of ``source`` with ``placement``.

    ``copies`` is the cache folder for quantized copies. If it has a copy of this model, that copy is loaded. If not,
    ``keep_quantized`` saves one.

    Raises CorruptModelError, OutOfMemoryError, and LoadCancelledError after ``cancelled`` is set.
    """
    spec, folder, copy = source.spec, source.folder, None
    if copies and placement.quantization in ("int8", "nf4", "fp4"):
        copy = quantized_copies.copy_of(copies, spec, source.commit, placement.quantization)
        if copy.is_dir():
            folder = copy
            placement = placement.with_reason("quantization", "a saved copy is already quantized")
    try:
        with _progress(report, cancelled or threading.Event()):
            loaded = _load(source, folder, placement)
        if copy and keep_quantized and not copy.is_dir():
            report("loading", None, "saving the quantized copy")
            _keep(loaded, copy)
        return loaded
    except GraniteDemoError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"{spec.title} does not fit into the memory of {placement.device}. "
                "Choose a smaller model or precision, or unload the loaded model."
            ) from error.with_traceback(None)
        # safetensors, json and transformers have different exceptions for a damaged file.
        raise CorruptModelError(f"The files of {spec.title} in {folder} cannot be loaded: {_brief(error)}") from error


def _brief(error: BaseException) -> str:
    """Return what ``error`` says, without transformers' lists of all its classes and its advice to install others."""
    if isinstance(error, KeyError):
        return f"transformers does not know {error}."
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text[:LONGEST_REASON].rstrip('.')}{'…' if len(text) > LONGEST_REASON else '.'}"


def _keep(loaded: LoadedModel, copy: Path) -> None:
    try:
        quantized_copies.save_copy(loaded.model, loaded.tokenizer, copy)
    except OSError as error:  # the model is loaded anyway
        log.warning("The quantized copy of %s could not be saved: %s", loaded.spec.name, error)


def _load(source: Source, folder: Path, placement: Placement) -> LoadedModel:
    spec, stored = source.spec, read_checkpoint(folder)
    config, shape = stored.config, known_shape(stored.config)
    _check_architecture(config)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer(PANIC_PROBE)  # some damaged ones only fail now
    model = _load_weights(stored, placement)
    model.eval()
    _keep_off_avx512(model)
    end = model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    limit = getattr(model.config, "max_position_embeddings", None) or DEFAULT_CONTEXT
    context = min(placement.context or limit, limit)
    size = weight_bytes(model)
    rows = model.get_input_embeddings().weight.shape[0]
    notes = (*stored.notes, *unusable_parts(tokenizer, rows))
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        source=source,
        placement=placement,
        context_length=context,
        eos_ids=frozenset(token for token in (*ends, tokenizer.eos_token_id) if token is not None and token < rows),
        weight_bytes=size,
        differences=(*registry.differences(spec, config), *notes),
        shape=shape,
        memory=_memory_use(size, placement, shape, context),
        switches=find_switches(tokenizer),
    )


def _load_weights(stored: StoredCheckpoint, placement: Placement) -> Any:
    """Return the model. Raises CorruptModelError if it and the files do not have the same tensors."""
    # Left out, not None, where there is nothing to quantize: None switches a checkpoint's own quantization off.
    wanted = None if stored.quantization else quantization_config(placement)
    quantization = {"quantization_config": wanted} if wanted else {}
    # Of each matrix product in int8 this says that its input is cast to float16: thousands of lines an answer.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # Its report of differing tensors repeats, in colours, what the errors below say.
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
    where: Any = {"device_map": "auto" if placement.spread else {"": placement.device}}
    if placement.processes > 1:
        where = {"distributed_config": DistributedConfig(tp_size=placement.processes)}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        stored.folder,
        dtype=placement.dtype,
        **where,
        **quantization,
        attn_implementation=placement.attention,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below, by name
    )
    model, found = loaded
    for name, there, needed in sorted(found["mismatched_keys"]):
        sizes = " x ".join(map(str, there)), " x ".join(map(str, needed))
        raise CorruptModelError(
            f"{stored.folder} has the tensor {name} with the shape {sizes[0]}, but config.json needs {sizes[1]}. Use "
            "the config.json of the same model."
        )
    # transformers only logs these, and fills what is missing with random numbers.
    check_tensor_names(stored.folder, stored.tensors, found["missing_keys"], found["unexpected_keys"])
    return model


def _check_architecture(config: dict[str, Any]) -> None:
    """Raise CorruptModelError if transformers has no causal language model of this type."""
    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING_NAMES:
        raise CorruptModelError(
            f"transformers {version('transformers')} does not know models of type {kind!r:.60}. Use a newer release of "
            "this program, or serve the model with another server and give its address with --backend."
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise CorruptModelError(f"Models of type {kind!r:.60} do not continue text. Choose a text model.")


def _keep_off_avx512(model: Any) -> None:
    """Use one 4-bit path on all processors: bitsandbytes' kernel for AVX512-BF16 fails on some of Granite's sizes."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _memory_use(weights: int, placement: Placement, shape: Shape | None, context: int) -> MemoryUse | None:
    if shape is None:
        return None
    precision = precision_of(placement.dtype, placement.quantization)
    cache = context * planning.kv_bytes_per_token(shape, precision) + planning.state_bytes(shape, precision)
    parts = placement.processes
    return MemoryUse(placement.device, weights // parts, cache // parts, free_memory(placement.device))


def weight_bytes(model: Any) -> int:
    """Bytes of all parameters and buffers, and of the scales that bitsandbytes keeps beside its parameters."""
    scales: list[torch.Tensor | None] = []
    for parameter in model.parameters():
        scales.append(getattr(parameter, "SCB", None))
        if state := getattr(parameter, "quant_state", None):
            scales += [state.absmax, state.code]
            if state.nested:
                scales += [state.offset, state.state2.absmax, state.state2.code]
    footprint: int = model.get_memory_footprint()
    return footprint + sum(tensor.nbytes for tensor in scales if tensor is not None)


def quantization_config(placement: Placement) -> BitsAndBytesConfig | None:
    """bitsandbytes' settings: 4-bit with double quantization and computing in the model's precision, or 8-bit."""
    if placement.quantization == "none":
        return None
    if placement.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=placement.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=placement.dtype,
    )


@contextmanager
def _progress(report: Report, cancelled: threading.Event) -> Iterator[None]:
    """Turn transformers' own bar for the weights into reports, each of which is a place to stop."""

    class Bar:
        def __init__(self, iterable: Any = None, *_: Any, total: int | None = None, **__: Any) -> None:
            self.iterable = iterable
            self.total = total or (len(iterable) if hasattr(iterable, "__len__") else None)
            self.done = 0

        def update(self, count: int = 1) -> None:
            if cancelled.is_set():
                raise LoadCancelledError("The load was cancelled.")
            self.done += count
            detail = f"weights {self.done} of {self.total}" if self.total else f"weights {self.done}"
            report("loading", self.done / self.total if self.total else None, detail)

        def __iter__(self) -> Iterator[Any]:
            for item in self.iterable or ():
                yield item
                self.update()

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_, **__: None  # close, set_postfix and the like have nothing to show here

    disable_progress_bar()
    previous = set_tqdm_hook(lambda factory, arguments, options: Bar(*arguments, **options))
    try:
        yield
    finally:
        set_tqdm_hook(previous)
