"""What a folder with a checkpoint holds, from its files alone: which kind of model, which quantization, which tensors.

Runs before torch and transformers read the files, so that each problem is one sentence that says what would work.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from granite_demo.errors import ConfigurationError, CorruptModelError
from granite_demo.models.config import Shape, is_planned, read_config
from granite_demo.models.safetensors_header import HeaderError, StoredTensor, is_pointer, read_tensors

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
TEXTS = ("*.json", "*.jinja")
SCALES = re.compile(r".*\.(\w*weight_scale\w*|input_scale|scales|qweight|qzeros|g_idx|weight_packed|absmax|SCB)")
"""Tensors that belong to quantized weights, in the formats of ``METHODS``, of modelopt and of MLX."""
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "_fsdp_wrapped_module.", "language_model.")
"""What DistributedDataParallel, torch.compile, PEFT, FSDP and vision models write before the names of tensors."""
HARMLESS = re.compile(r".*(rotary_emb\.inv_freq|attn\.(masked_)?bias)|(model\.)?mtp\..*")
"""Tensors that a model computes without: tables of older releases, and heads for the prediction of several tokens."""

OTHER_TASKS = (
    (r"llava|vision|idefics|docling|paligemma|pixtral|mllama|vl\b|_vl_", "a model for images"),
    (r"speech|whisper|wav2vec|audio", "a model for speech"),
    (r"tinytimemixer|patchtst|patchtsmixer|timeseries|flowstate", "a model for time series"),
    (r"bert|mpnet|electra", "an encoder, which writes no text"),
)
"""Patterns of model types, and what these models are."""
OTHER_HEADS = {
    "ForSequenceClassification": "a classifier, which writes no text",
    "ForTokenClassification": "a classifier, which writes no text",
    "ForMaskedLM": "an encoder, which writes no text",
    "ForCTC": "a model for speech",
    "ForSpeechSeq2Seq": "a model for speech",
}
"""Ends of the names of architectures."""


@dataclass(frozen=True, slots=True)
class QuantizationMethod:
    """A format of quantized weights that transformers can load, and the packages that it needs.

    ``packages`` maps the module to import to the name for pip.
    """

    title: str
    packages: Mapping[str, str]
    unpacked_on_cpu: bool = False
    """Whether transformers converts the weights to bfloat16 where no GPU is."""


METHODS: dict[str, QuantizationMethod] = {
    "bitsandbytes": QuantizationMethod("bitsandbytes", {"bitsandbytes": "bitsandbytes"}),
    "fp8": QuantizationMethod("FP8", {}, unpacked_on_cpu=True),
    "fbgemm_fp8": QuantizationMethod("FP8 (FBGEMM)", {"fbgemm_gpu": "fbgemm-gpu"}),
    "compressed-tensors": QuantizationMethod(
        "compressed-tensors", {"compressed_tensors": "compressed-tensors", "loguru": "loguru"}
    ),
    "awq": QuantizationMethod("AWQ", {"gptqmodel": "gptqmodel"}),
    "gptq": QuantizationMethod("GPTQ", {"optimum": "optimum", "gptqmodel": "gptqmodel"}),
    "mxfp4": QuantizationMethod("MXFP4", {}, unpacked_on_cpu=True),
    "torchao": QuantizationMethod("torchao", {"torchao": "torchao"}),
    "hqq": QuantizationMethod("HQQ", {"hqq": "hqq"}),
    "quanto": QuantizationMethod("quanto", {"optimum.quanto": "optimum-quanto"}),
    "auto-round": QuantizationMethod("AutoRound", {"auto_round": "auto-round"}),
}
"""The formats by ``quant_method`` in config.json. transformers has an own quantizer for each."""


@dataclass(frozen=True, slots=True)
class OwnQuantization:
    """How the weights of a checkpoint are quantized."""

    method: str
    """A key of ``METHODS``."""
    label: str
    """What the screen shows: nf4, fp4 and int8 for bitsandbytes, otherwise the format, such as AWQ 4-bit."""

    @property
    def known(self) -> QuantizationMethod:
        """The format."""
        return METHODS[self.method]


def own_quantization(config: Mapping[str, Any]) -> OwnQuantization | None:
    """Return how the checkpoint with this config.json is quantized, or None.

    Raises CorruptModelError for a format that transformers cannot load: it would read the weights without their scales.
    """
    settings = config.get("quantization_config") or config.get("compression_config")
    mlx = config.get("quantization")
    if not isinstance(settings, dict):
        if isinstance(mlx, dict) and "bits" in mlx:
            _refuse_mlx()
        return None
    method = str(settings.get("quant_method", "")).replace("compressed_tensors", "compressed-tensors")
    bits = settings.get("bits")
    if not method and bits and "group_size" in settings:
        _refuse_mlx()
    if method == "bitsandbytes":
        eight = settings.get("load_in_8bit") or settings.get("_load_in_8bit")
        four = "fp4" if settings.get("bnb_4bit_quant_type") == "fp4" else "nf4"
        return OwnQuantization(method, "int8" if eight else four)
    if method not in METHODS:
        name = f"in the format {method!r:.60}" if method else "in a format that config.json does not name"
        raise CorruptModelError(
            f"The weights are quantized {name}, which cannot be loaded here. Use the original checkpoint, or serve "
            "this one with vLLM and give its address with --backend."
        )
    detail = settings.get("format") if method == "compressed-tensors" else f"{bits}-bit" if bits else ""
    return OwnQuantization(method, " ".join(filter(None, (METHODS[method].title, str(detail or "")))))


def _refuse_mlx() -> NoReturn:
    raise CorruptModelError(
        "This is an MLX checkpoint, which only Apple's mlx-lm can run. Use the original checkpoint or a GGUF file."
    )


def require_packages(own: OwnQuantization) -> None:
    """Raise ConfigurationError with one command if packages for this format are missing."""
    missing = [name for module, name in own.known.packages.items() if not _is_installed(module)]
    if missing:
        raise ConfigurationError(
            f"The weights are quantized with {own.label}, which needs {' and '.join(missing)}. "
            f"Run: pip install {' '.join(own.known.packages.values())}"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """The files of a model in the format of transformers."""

    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]
    quantization: OwnQuantization | None
    notes: tuple[str, ...] = ()
    """What the folder has beside the model that is not used."""

    @property
    def shape(self) -> Shape | None:
        """The shape in config.json, or None if the planner does not know the architecture."""
        return Shape.from_config(self.config) if is_planned(self.config) else None

    @property
    def weight_bytes(self) -> int:
        """The bytes of the tensors, without a head that duplicates the embedding of a tied model."""
        tied = self.config.get("tie_word_embeddings") is True
        return sum(tensor.size for name, tensor in self.tensors.items() if not (tied and name == "lm_head.weight"))


def read_checkpoint(folder: Path) -> StoredCheckpoint:
    """Read everything but the data of the tensors.

    Raises CorruptModelError with one sentence: what the folder is or lacks, and what would work.
    """
    check_not_adapter(folder)
    config = read_config(folder)
    _check_texts(folder)
    check_kind(config)
    own = own_quantization(config)
    if own is None and (folder / "hf_quant_config.json").is_file():
        own = own_quantization({"quantization_config": {"quant_method": "modelopt"}})
    tensors = _read_all_tensors(folder)
    if own is None and (scale := next(filter(SCALES.fullmatch, tensors), None)):
        _refuse(
            folder,
            f"has quantized weights (their scales are tensors such as {scale}), but config.json has no "
            "quantization_config, so they cannot be read",
            "Download config.json again, or use the original checkpoint.",
        )
    _check_tokenizer(folder)
    beside = (f"{ADAPTER} in the folder is not used: the model runs without that adapter.",)
    return StoredCheckpoint(folder, config, tensors, own, beside if (folder / ADAPTER).is_file() else ())


def check_not_adapter(folder: Path) -> None:
    """Raise CorruptModelError if the folder has an adapter instead of a model."""
    path = folder / ADAPTER
    if not path.is_file() or _weight_files(folder):
        return
    try:
        settings = json.loads(path.read_bytes())
        base = str(settings.get("base_model_name_or_path") or "a model that it does not name")
        kind = "an activated LoRA adapter" if settings.get("alora_invocation_tokens") else "an adapter (LoRA)"
    except (OSError, ValueError, AttributeError):
        base, kind = "a model", "an adapter"
    _refuse(folder, f"is {kind} of {base:.200}, not a model", "Merge it with PEFT's merge_and_unload, and use that.")


def check_kind(config: Mapping[str, Any]) -> None:
    """Raise CorruptModelError if the config is of a model that does not continue text, or lacks the sizes of one."""
    kind = str(config.get("model_type", ""))
    architectures = config.get("architectures")
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    what = next((what for pattern, what in OTHER_TASKS if re.search(pattern, kind)), "")
    what = what or next((what for end, what in OTHER_HEADS.items() for name in names if name.endswith(end)), "")
    if what:
        _refuse_config(f"This is {what} ({kind}). Choose a text model; granite-demo models lists Granite's.")
    if not kind:
        _refuse_config("config.json has no model_type, so the architecture is unknown. Download the file again.")
    if is_planned(config):
        missing = [
            key
            for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
            if key not in config
        ]
        if missing:
            _refuse_config(
                f"config.json lacks {', '.join(missing)}: it is incomplete, or for code of its own, never run here. "
                "Use a checkpoint in the present format of transformers."
            )
        Shape.from_config(config)


def check_tensor_names(folder: Path, stored: Iterable[str], missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Compare the names of the tensors with those of the model. Raises CorruptModelError for a difference.

    ``missing`` has the names that only the model has, ``unexpected`` those that only the files have.
    """
    lacks, extra = sorted(missing), sorted(name for name in unexpected if not HARMLESS.fullmatch(name))
    names = list(stored)
    prefix = next((prefix for prefix in WRAPPERS if names and all(name.startswith(prefix) for name in names)), "")
    if prefix and lacks:
        _refuse(
            folder,
            f"has the prefix {prefix} before all names of tensors, so none is found",
            "Save the model without its wrapper, or rename the tensors.",
        )
    if lacks:
        _refuse(folder, f"lacks {len(lacks)} weights, such as {lacks[0]}", COPY_AGAIN)
    if extra:
        _refuse(
            folder,
            f"has {len(extra)} tensors that the model in config.json does not have, such as {extra[0]}: the answers "
            "would be wrong without them",
            "Use the config.json of the same model.",
        )


COPY_AGAIN = "Copy or download the files again."


def _read_all_tensors(folder: Path) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for path in _required_weights(folder):
        try:
            tensors |= read_tensors(path)
        except HeaderError as error:
            text = str(error)
            _refuse(path, text, "" if "git lfs" in text else COPY_AGAIN)
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))


def _required_weights(folder: Path) -> list[Path]:
    """Return the files that transformers loads. Raises CorruptModelError if they are missing or have other names."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
        except (ValueError, TypeError, KeyError, AttributeError):
            _refuse(index, "cannot be read", "Run: git lfs pull" if is_pointer(index) else COPY_AGAIN)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            partial = list(folder.rglob("*.incomplete"))
            why = "The download is incomplete: repeat it." if partial else COPY_AGAIN
            _refuse(folder, f"lacks {missing[0]}{more} of the {len(names)} files with weights", why)
        return [folder / name for name in names]
    if found := _weight_files(folder):
        if len(found) > 1:
            _refuse(folder, f"has {len(found)} files with weights, but no {INDEX}", "Copy that file, too.")
        _refuse(found[0], "has the weights under another name", "Rename it to model.safetensors.")
    pickled = next((path for pattern in PICKLED for path in sorted(folder.glob(pattern))), None)
    if pickled:
        _refuse(
            folder,
            f"has its weights only as a pickle file ({pickled.name}), which can run code and is never loaded",
            "Save the model as safetensors: save_pretrained of transformers does this.",
        )
    _refuse(folder, "has no weights: neither safetensors nor GGUF files", COPY_AGAIN)


def _check_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    if not any((folder / name).is_file() for name in TOKENIZERS):
        _refuse(folder, "has no tokenizer.json", "Copy it from the repository of the same model.")
    if path.is_file():
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            _refuse(path, "is not valid JSON", COPY_AGAIN)


def _check_texts(folder: Path) -> None:
    for path in sorted(path for pattern in TEXTS for path in folder.glob(pattern)):
        if is_pointer(path):
            _refuse(path, "is a git-lfs pointer instead of the file", "Run in its folder: git lfs pull")
        try:
            path.read_text(encoding="utf-8")
        except ValueError:
            _refuse(path, "is not text in UTF-8", "Save it in UTF-8.")
        except OSError as error:
            _refuse(path, f"cannot be read ({error.strerror})", "")


def _refuse(path: Path, what: str, to_do: str) -> NoReturn:
    raise CorruptModelError(f"{path} {what}.{' ' if to_do else ''}{to_do}")


def _refuse_config(text: str) -> NoReturn:
    raise CorruptModelError(text)
